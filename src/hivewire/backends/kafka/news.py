"""Waiting for something to come, for some time: cheaper than an event within a time-out, on the way of each message."""

from __future__ import annotations

import asyncio


class News:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_come = False
        self._waiting: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        """Something has come: who waits goes on, and who waits next does not wait."""
        self._has_come = True
        for waiter in self._waiting:
            _end(waiter)

    def clear(self) -> None:
        self._has_come = False

    async def wait(self, within_s: float) -> None:
        """Until something has come since `clear`, or the time is up."""
        if self._has_come or within_s <= 0:
            return
        waiter = self._loop.create_future()
        timer = self._loop.call_later(within_s, _end, waiter)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            timer.cancel()


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
