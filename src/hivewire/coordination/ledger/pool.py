"""Connections to PostgreSQL, few of them, used again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec

from hivewire.errors import Closed, ConnectionLost

_SURPLUS_S: Final = 5.0

Connection: TypeAlias = Any
"""One of asyncpg, which has no types."""


class Answer(Exception):
    """What a script has raised, on its way past the pool."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections, and for how long."""

    most: int = 25
    idle: int = 5
    lifetime_s: float = 300.0
    idle_time_s: float = 60.0


class _Kept:
    __slots__ = ("born_at", "connection", "used_at")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.born_at = self.used_at = time.monotonic()


class Pool:
    """Hands out connections, the one used last first. One whose use was cut short is not used again: what it was
    doing goes on at the server for a while."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], limits: Limits) -> None:
        self._connect = connect
        self._limits = limits
        self._places = asyncio.Semaphore(limits.most)
        self._idle: deque[_Kept] = deque()
        self._busy: set[_Kept] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._unused = asyncio.Event()
        self._is_closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Waits for a place when all connections are in use."""
        async with self._places:
            if self._is_closed:
                raise Closed("use the ledger: it was closed")
            kept = self._pop() or _Kept(await self._connect())
            self._busy.add(kept)
            try:
                yield kept.connection
            except BaseException as error:
                self._judge(kept.connection, error)
                raise
            finally:
                self._busy.discard(kept)
                self._push(kept)
                if not self._busy:
                    self._unused.set()

    def _judge(self, connection: Connection, error: BaseException) -> None:
        """Whether the connection is as good after the error as before."""
        if connection.is_closed():  # asyncpg may say anything when that happens in the middle
            if isinstance(error, Exception):
                raise ConnectionLost(f"the connection was closed: {str(error) or type(error).__name__}") from error
        elif not isinstance(error, (Answer, asyncpg.PostgresError)) or connection.is_in_transaction():
            connection.terminate()

    def _pop(self) -> _Kept | None:
        while self._idle:
            kept = self._idle.pop()
            if self._is_good(kept):
                return kept
            kept.connection.terminate()
        return None

    def _is_good(self, kept: _Kept) -> bool:
        now = time.monotonic()
        return (
            not kept.connection.is_closed()
            and now - kept.born_at < self._limits.lifetime_s
            and now - kept.used_at < self._limits.idle_time_s
        )

    def _push(self, kept: _Kept) -> None:
        kept.used_at = time.monotonic()
        if kept.connection.is_closed():
            return
        if self._is_closed:
            kept.connection.terminate()
            return
        self._idle.append(kept)
        self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            pause_s = min(self._limits.idle_time_s, _SURPLUS_S)
            self._sweeping = asyncio.get_running_loop().call_later(pause_s, self._sweep)

    def _sweep(self) -> None:
        """Close those that nobody has used for long; more than the idle ones that are allowed, sooner."""
        self._sweeping = None
        surplus_since = time.monotonic() - _SURPLUS_S
        for left in range(len(self._idle), 0, -1):
            kept = self._idle.popleft()  # the one used longest ago comes first
            if self._is_good(kept) and (left <= self._limits.idle or kept.used_at > surplus_since):
                self._idle.append(kept)
            else:
                kept.connection.terminate()
        if self._idle:
            self._sweep_later()

    async def close(self, grace_s: float = 5.0) -> None:
        """What has begun may end within `grace_s`; what waits for a connection gets `Closed`."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._unused.clear()
        try:
            if self._busy:
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._unused.wait()
        finally:  # also when whoever closes it is cancelled meanwhile
            for kept in (*self._idle, *self._busy):
                kept.connection.terminate()
            self._idle.clear()
