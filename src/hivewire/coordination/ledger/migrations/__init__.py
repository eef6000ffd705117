"""Numbered SQL for each dialect, up and down."""
