"""Queues in an SQLite file, shared by the processes of one host."""

from hivewire.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]
