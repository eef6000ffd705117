"""Writes of many callers as one transaction: one way to the server and one commit for what waits at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import compress
from typing import Final

from hivewire.coordination.ledger.pool import Connection, Pool
from hivewire.coordination.ledger.postgres_words import Again, of_many, of_one
from hivewire.coordination.ledger.store import Given, Row
from hivewire.errors import BackendError, Closed, ConnectionLost, LedgerError
from hivewire.rules.kinds import Kinds

_LEAST: Final = 8
_MOST: Final = 200
_MOST_BYTES: Final = 1_000_000


class NotTogether(Exception):
    """One of the statements cannot be done, or not at once. Nothing was changed: let each one try alone."""


class _Waiter:
    __slots__ = ("future", "statement")

    def __init__(self, statement: Given, future: asyncio.Future[Sequence[Row]]) -> None:
        self.statement = statement
        self.future = future


class Together:
    """Sends statements of the same text as one, on at most `lanes` connections.

    A batch forms while all of them are busy: nobody waits for company. The statements of a batch are executed one
    after another in one transaction, so that each finds what the ones before it have done.
    """

    def __init__(self, pool: Pool, lanes: int, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._pool = pool
        self._most_lanes = lanes
        self._translated = translated
        self._waiting = Kinds[_Waiter](most_bytes=_MOST_BYTES)
        self._lanes: set[asyncio.Task[None]] = set()
        self._running = 0
        self._busy = 0
        self._is_closed = False

    async def execute(self, statement: Given) -> Sequence[Row]:
        """Its rows, once they are stored. Raises `NotTogether`; `ConnectionLost` when it may be stored or not."""
        if self._is_closed:
            raise Closed("write to the ledger: it was closed")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(statement, loop.create_future())
        size = sum([len(value) for value in statement.values if type(value) is str])
        self._waiting.add(statement.sql, waiter, size=size)
        if self._running < self._most_lanes:
            self._running += 1
            lane = loop.create_task(self._lane(), name="hivewire-ledger-lane")
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await waiter.future

    async def close(self) -> None:
        """What is on the way may end; what waits gets `Closed`. With the pool."""
        self._is_closed = True
        closed = Closed("write to the ledger: it was closed")
        while batch := self._waiting.take(_MOST):
            _fail(batch, Closed, closed)
        await self._pool.close()
        if self._lanes:
            await asyncio.wait(self._lanes)

    async def _lane(self) -> None:
        try:
            while self._waiting:
                batch = [waiter for waiter in self._waiting.take(self._share()) if not waiter.future.done()]
                if batch:
                    self._busy += 1
                    try:
                        await self._store(batch)
                        await asyncio.sleep(0)  # who has got an answer may have the next question, for this lane
                    finally:
                        self._busy -= 1
        finally:
            self._running -= 1  # at once: the next one who comes must know that nobody is here any more

    def _share(self) -> int:
        """How many go now: all lanes get as many, but none gets few."""
        share = -(-len(self._waiting) // (self._most_lanes - self._busy))
        return min(max(share, _LEAST), _MOST)

    async def _store(self, batch: list[_Waiter]) -> None:
        batch.sort(key=lambda waiter: waiter.statement.locks)  # who locks in one order waits in no circle
        try:
            with self._translated():
                async with self._pool.connection() as connection:
                    rows = await _send(connection, [waiter.statement for waiter in batch])
        except Again as error:
            _fail(batch, NotTogether, error)
        except (ConnectionLost, Closed) as error:
            _fail(batch, type(error), error)
        except (BackendError, LedgerError) as error:
            _fail(batch, NotTogether, error)
        except BaseException as error:
            _fail(batch, ConnectionLost, error)
            raise
        else:
            _deliver(batch, rows)


async def _send(connection: Connection, statements: Sequence[Given]) -> Sequence[Row]:
    first = statements[0]
    rows: Sequence[Row]
    if len(statements) == 1:
        rows = await connection.fetch(of_one(first.sql, first.columns), *first.values)
    elif len({each.locks for each in statements}) < len(statements):  # each must see what the one before has done
        rows = await connection.fetchmany(of_one(first.sql, first.columns), [each.values for each in statements])
    else:
        columns = list(zip(*(each.values for each in statements), strict=True))
        is_given = tuple(column.count(None) < len(column) for column in columns)
        rows = await connection.fetch(of_many(first.sql, first.columns, is_given), *compress(columns, is_given))
    return rows


def _deliver(batch: Sequence[_Waiter], rows: Sequence[Row]) -> None:
    by_mark: dict[str, list[Row]] = {}
    for row in rows:
        by_mark.setdefault(row[-1], []).append(row)
    for waiter in batch:
        if not waiter.future.done():
            waiter.future.set_result(by_mark.get(waiter.statement.mark, ()))


def _fail(batch: Sequence[_Waiter], kind: type[Exception], error: BaseException) -> None:
    for waiter in batch:
        if not waiter.future.done():
            told = kind(str(error))
            told.__cause__ = error
            waiter.future.set_exception(told)
