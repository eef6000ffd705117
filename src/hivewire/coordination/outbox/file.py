"""The user's own SQLite file, which may belong to any program."""

from __future__ import annotations

import sqlite3

from hivewire.coordination.ledger.sqlite import SQLiteStore
from hivewire.errors import BackendError


class UsersFile(SQLiteStore):
    """As a ledger's file, but nothing of it is changed: neither its mark of ownership nor its journal mode."""

    async def open(self) -> None:
        if not self.path.exists():
            raise BackendError(f"there is no database {str(self.path)!r}; it is yours: your program makes it")
        await super().open()

    def prepare(self, db: sqlite3.Connection) -> None:
        """Its own `synchronous` is a matter of the connection: nothing that is marked as sent may be forgotten."""
        db.execute("PRAGMA synchronous = FULL")
