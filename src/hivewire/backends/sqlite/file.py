"""The file as one thread uses it: a connection and its turn at the write lock, opened when needed."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
from pathlib import Path

from hivewire.backends.sqlite import schema, trouble
from hivewire.backends.sqlite.turn import Turn

log = logging.getLogger(__name__)

PATIENCE_S = 4.0
_FREE_PAGES = "SELECT * FROM pragma_freelist_count, pragma_page_count"
_PAGES_KEPT = 1_000  # 4 MB: they are used again soon
_PAGES_AT_ONCE = 2_000
_LONG_LOG_BYTES = 64 * 1024 * 1024


class File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._db: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._turn: Turn | None = None
        self._opened: tuple[int, int] | None = None

    def _identity(self) -> tuple[int, int] | None:
        """Which file has the name. What is stored in one that has it no more is lost, whatever SQLite says."""
        try:
            found = os.stat(self._name)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @property
    def is_open(self) -> bool:
        return self._db is not None

    @property
    def cursor(self) -> sqlite3.Cursor:
        """Of what `connection` gave last, always the same: a new one for each costs as much as a short statement."""
        assert self._cursor is not None
        return self._cursor

    def connection(self) -> sqlite3.Connection:
        """A connection to the file with our tables in it, made if the file is new."""
        if self._db is not None:
            if self._identity() != self._opened:
                self.close()
                log.error("the file was deleted or replaced while it was open", extra={"path": str(self.path)})
                raise trouble.gone(self.path)
            return self._db
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._db = schema.connect(self.path)
                self._cursor = self._db.cursor()
                self._opened = self._identity()
                is_ours = schema.check(self._db, self.path)  # first: nothing is left beside a file of others
                self._turn = Turn(self.path)
                if not is_ours:
                    self._make_tables(self._db)
                return self._db
            except BaseException as error:
                self.close()
                # Another process may be making the tables, which takes an exclusive lock for a moment.
                if not (isinstance(error, sqlite3.Error) and trouble.is_busy(error) and time.monotonic() < deadline):
                    raise
                time.sleep(random.uniform(0.001, 0.005))

    def _make_tables(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        self.begin(PATIENCE_S)
        if not schema.is_ours(db, self.path):
            schema.create(db)
        db.execute("COMMIT")

    def begin(self, patience_s: float) -> None:
        """Begin a write transaction, on what `connection` gave last."""
        turn = self._turn
        assert turn is not None
        turn.begin(self.cursor, patience_s)

    def give_turn(self) -> None:
        """After a commit: let other processes in."""
        if self._turn is not None:
            self._turn.give()

    def shorten_log(self) -> None:
        """Checkpoints need a moment in which nobody reads; when processes never leave one, the log grows."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(f"{self.path}-wal") > _LONG_LOG_BYTES:
                self.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # says busy, never waits

    def make_room(self) -> None:
        """The disk is full: much of it may be our log, whose pages have their place in the file already."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def give_back_space(self) -> bool:
        """Give some free pages back to the file system, unless they are few. True: there are more."""
        db = self.connection()
        free, pages = db.execute(_FREE_PAGES).fetchone()
        if free < _PAGES_KEPT or free * 4 < pages:
            return False
        try:
            db.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")  # `execute` would free a single page
        except sqlite3.OperationalError as error:
            if trouble.is_busy(error):
                return False
            raise
        return bool(free - _PAGES_AT_ONCE >= _PAGES_KEPT)

    def close(self) -> None:
        """Also after trouble: the next use opens the file anew, for it may be another one by then."""
        db, self._db = self._db, None
        self._cursor = None
        turn, self._turn = self._turn, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if turn is not None:
            turn.close()
