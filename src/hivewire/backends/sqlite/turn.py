"""Taking the write lock among processes, so that each gets its turn."""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import time
from pathlib import Path

from hivewire.backends.sqlite import trouble

_FIRST_PAUSE_S = 0.0002
_LONGEST_PAUSE_S = 0.001
_YIELD_S = 0.0015  # longer than the longest pause: who waits tries in that time
_YIELD_EACH_S = 0.004
_LOOK_EACH_S = 0.001


class Turn:
    """SQLite wakes nobody when the write lock is free, so a busy process could keep the others out for
    seconds. Therefore who waits holds a shared lock of a file beside the database, and who has committed
    looks whether somebody does, and then stays away for a moment. A kill frees these locks, too."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(f"{path}-wait", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._look_at = 0.0

    def begin(self, cursor: sqlite3.Cursor, patience_s: float) -> None:
        """Begin a write transaction. SQLite's own waiting would sleep up to 100 ms at a time."""
        try:
            cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if not trouble.is_busy(error):
                raise
            self._wait(cursor, patience_s)

    def _wait(self, cursor: sqlite3.Cursor, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        pause = _FIRST_PAUSE_S
        is_noted = False
        try:
            while True:
                is_noted = is_noted or self._lock(fcntl.LOCK_SH)
                time.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 1.5, _LONGEST_PAUSE_S)
                try:
                    cursor.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if not trouble.is_busy(error) or time.monotonic() >= deadline:
                        raise
                else:
                    return
        finally:
            if is_noted:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def give(self) -> None:
        """After a commit: let others in, if there are any."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EACH_S
        if self._lock(fcntl.LOCK_EX):
            fcntl.flock(self._file, fcntl.LOCK_UN)
        else:
            time.sleep(_YIELD_S)
            self._look_at = time.monotonic() + _YIELD_EACH_S

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def close(self) -> None:
        os.close(self._file)
