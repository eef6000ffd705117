"""Records that are here before their time, in a store that cannot delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from hivewire.record import Fetched

_ROUNDING_S = 1e-6


class Later:
    """Keeps them until they fall due, and tells of each then, the earliest first."""

    __slots__ = ("_now", "_tell", "_ties", "_waiting")

    def __init__(self, now: Callable[[], float], tell: Callable[[list[Fetched]], None]) -> None:
        """`now`: the store's clock."""
        self._now = now
        self._tell = tell
        self._ties = 0
        self._waiting: list[tuple[float, int, Fetched]] = []

    def keep(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Those that are not due yet; returns the others."""
        now = self._now()
        due = []
        for fetched in batch:
            due_at = fetched.record.due_at
            if due_at <= now:
                due.append(fetched)
            else:
                self._ties += 1
                heappush(self._waiting, (due_at, self._ties, fetched))
                asyncio.get_running_loop().call_later(due_at - now, self._look)
        return due

    def _look(self) -> None:
        now, due = self._now(), []
        while self._waiting and self._waiting[0][0] <= now + _ROUNDING_S:
            due.append(heappop(self._waiting)[2])
        self._tell(due)
