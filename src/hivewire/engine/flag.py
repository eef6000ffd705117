"""`asyncio.Event` for objects of which there are tens of thousands: it takes next to nothing until somebody waits."""

from __future__ import annotations

import asyncio


class Flag:
    """Set or not; whoever waits goes on when it is set."""

    __slots__ = ("_waiters", "is_set")

    def __init__(self, *, is_set: bool = False) -> None:
        self.is_set = is_set
        self._waiters: list[asyncio.Future[None]] | tuple[()] = ()

    def set(self) -> None:
        """Whoever waits now goes on, even if it is cleared at once."""
        self.is_set = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self.is_set = False

    async def wait(self) -> None:
        if self.is_set:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters = self._waiters or []
        waiters.append(waiter)
        try:
            await waiter
        finally:
            waiters.remove(waiter)
            if not waiters and self._waiters is waiters:
                self._waiters = ()
