"""Decisions without I/O, clock or chance: those come in as arguments."""
