"""What is read without writing: how much a queue holds, and whether the file is well."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hivewire.backend import Depth, QueueSpec
from hivewire.backends.sqlite import trouble
from hivewire.backends.sqlite.file import File
from hivewire.backends.sqlite.schema import BLOCKED, IS_LONE, READY

_Result = TypeVar("_Result")

_PROBE_S = 1.5
_QUEUE = "SELECT id, held, in_flight, scheduled, dead FROM queues WHERE name = ?"
_WAITING = f"SELECT count(*) FROM lanes INDEXED BY lanes_due WHERE state = {BLOCKED} AND due_at > ? AND queue = ?"
_OVERDUE = "SELECT count(*) FROM scheduled WHERE due_at <= ? AND queue = ?"
_LOOKED_THROUGH = 1_000
_OLDEST = f"""
WITH RECURSIVE ranks(rank) AS (
  SELECT min(rank) FROM lanes WHERE queue = :queue AND state = {READY}
  UNION ALL SELECT (SELECT min(rank) FROM lanes WHERE queue = :queue AND state = {READY} AND rank > ranks.rank)
  FROM ranks WHERE ranks.rank NOT NULL)
SELECT min(iif({IS_LONE}, l.stored_at, (SELECT p.stored_at FROM packs p WHERE p.lane = l.id ORDER BY p.first LIMIT 1)))
FROM lanes l WHERE l.queue = :queue AND l.key IN (
  SELECT (SELECT key FROM lanes
    WHERE queue = :queue AND state = {READY} AND rank = ranks.rank ORDER BY head LIMIT 1)
  FROM ranks
  UNION ALL SELECT * FROM (SELECT key FROM lanes WHERE queue = :queue AND state <> {READY} LIMIT {_LOOKED_THROUGH}))"""
_QUEUES = "SELECT name, mode, shards, cap FROM queues ORDER BY name"
_PROBE = "UPDATE state SET beat = beat + 1"


class Reader:
    """One thread with a connection of its own, started with the first read."""

    def __init__(self, path: Path) -> None:
        self._executor = ThreadPoolExecutor(1, "hivewire-sqlite-reader")
        self._file = File(path)

    async def read(self, function: Callable[[sqlite3.Connection], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._read, function)

    async def probe(self) -> None:
        await self.read(self._probe)

    async def shrink(self) -> None:
        """Give free space back, all of it, in steps that leave room for others."""
        while await self.read(lambda _: self._file.give_back_space()):
            pass

    def _read(self, function: Callable[[sqlite3.Connection], _Result]) -> _Result:
        try:
            return function(self._file.connection())
        except Exception as error:
            self._file.close()
            raise trouble.explain(error, "read", self._file.path) from error

    def _probe(self, db: sqlite3.Connection) -> None:
        """Write, so that a full disk or a held lock shows itself."""
        self._file.begin(_PROBE_S)
        try:
            db.execute(_PROBE)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._file.close)
        self._executor.shutdown()


def depth(db: sqlite3.Connection, name: str) -> Depth:
    now = time.time()
    db.execute("BEGIN")
    try:
        row = db.execute(_QUEUE, (name,)).fetchone()
        if row is None:
            return Depth()
        queue, held, in_flight, scheduled, dead = row
        scheduled += db.execute(_WAITING, (now, queue)).fetchone()[0] - db.execute(_OVERDUE, (now, queue)).fetchone()[0]
        oldest = db.execute(_OLDEST, {"queue": queue}).fetchone()[0]
    finally:
        db.execute("COMMIT")
    age_s = 0.0 if oldest is None else max(0.0, now - oldest)
    return Depth(
        ready=held - in_flight - scheduled, in_flight=in_flight, scheduled=scheduled, dead=dead, oldest_age_s=age_s
    )


def queues(db: sqlite3.Connection) -> list[QueueSpec]:
    return [QueueSpec(name=name, mode=mode, shards=shards, cap=cap) for name, mode, shards, cap in db.execute(_QUEUES)]
