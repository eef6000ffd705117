"""A store whose process dies at a chosen statement."""

from __future__ import annotations

import sqlite3
from typing import Any


class Crash(BaseException):
    """The process dies here."""


class DyingConnection:
    """A connection whose process dies before the n-th statement."""

    def __init__(self, real: sqlite3.Connection, statements: int) -> None:
        self._real = real
        self._left = statements

    def _count(self, statement: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise Crash
        if self._left < 0:
            raise sqlite3.OperationalError(f"dead processes run nothing: {statement}")

    def execute(self, statement: str, *rest: Any) -> Any:
        self._count(statement)
        return self._real.execute(statement, *rest)

    def executemany(self, statement: str, *rest: Any) -> Any:
        self._count(statement)
        return self._real.executemany(statement, *rest)

    in_transaction = False  # so that nobody rolls back: the file is left as a killed process leaves it
