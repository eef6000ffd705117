"""What a consumer waits for: news, and that nobody looks into what it has read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class News:
    """There may be something to read. Cheaper to wait for, with a limit, than an `asyncio.Event`."""

    __slots__ = ("_loop", "_waiters", "is_there")

    def __init__(self) -> None:
        self.is_there = False
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []

    def tell(self) -> None:
        self.is_there = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """False: nothing was told within this time."""
        if self.is_there:
            return True
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        timer = self._loop.call_later(seconds, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.remove(waiter)
        return self.is_there


class Stillness:
    """Others look into what was read, and take from it, while nothing is read or handed out.

    Who reads waits for `free()` first if `is_asked`, then is `reading` until it has handed out.
    """

    def __init__(self) -> None:
        self.reading = False
        self._asking = 0
        self._changed = asyncio.Event()

    @property
    def is_asked(self) -> bool:
        return self._asking > 0

    async def free(self) -> None:
        while self._asking:
            await self._change()

    def read(self) -> None:
        """The reader has handed out what it read."""
        self.reading = False
        if self._asking:
            self._changed.set()

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        self._asking += 1
        try:
            while self.reading:
                await self._change()
            yield
        finally:
            self._asking -= 1
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
