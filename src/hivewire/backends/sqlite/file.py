"""The file as one thread uses it: a connection and its turn at the write lock, opened when needed."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from pathlib import Path

from hivewire.backends.sqlite import schema, trouble
from hivewire.backends.sqlite.turn import Turn

PATIENCE_S = 4.0


class File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._turn: Turn | None = None

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def connection(self) -> sqlite3.Connection:
        """A connection to the file with our tables in it, made if the file is new."""
        if self._db is not None:
            return self._db
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._db = schema.connect(self.path)
                self._turn = Turn(self.path)
                self._prepare(self._db)
                return self._db
            except BaseException as error:
                self.close()
                # Another process may be making the tables, which takes an exclusive lock for a moment.
                if not (isinstance(error, sqlite3.Error) and trouble.is_busy(error) and time.monotonic() < deadline):
                    raise
                time.sleep(random.uniform(0.001, 0.005))

    def _prepare(self, db: sqlite3.Connection) -> None:
        if schema.check(db, self.path):
            return
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        self.begin(PATIENCE_S)
        if not schema.is_ours(db, self.path):
            schema.create(db)
        db.execute("COMMIT")

    def begin(self, patience_s: float) -> None:
        """Begin a write transaction."""
        db = self.connection()
        if self._turn is not None:  # both are there or neither
            self._turn.begin(db, patience_s)

    def give_turn(self) -> None:
        """After a commit: let other processes in."""
        if self._turn is not None:
            self._turn.give()

    def close(self) -> None:
        """Also after trouble: the next use opens the file anew, for it may be another one by then."""
        db, self._db = self._db, None
        turn, self._turn = self._turn, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if turn is not None:
            turn.close()
