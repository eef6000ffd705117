"""Tells those who follow a run when there may be news of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOOK_S: Final = 0.25
"""How often a run is looked at that another coordinator may have moved."""
_EACH_S: Final = 0.002
"""All who follow runs look, together, at most once in this time."""


class Moves:
    """Of one coordinator. Each follower is told of its own run alone: with a thousand runs at once, to wake all of
    them for each step of one would take all the time there is."""

    def __init__(self) -> None:
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._count = 0

    @contextmanager
    def of(self, run: str) -> Iterator[Follower]:
        """Look at the run, then wait: what moves from here on is not missed."""
        event = asyncio.Event()
        self._followers.setdefault(run, set()).add(event)
        self._count += 1
        try:
            yield Follower(self, event)
        finally:
            self._count -= 1
            self._followers[run].discard(event)
            if not self._followers[run]:
                del self._followers[run]

    def tell(self, run: str) -> None:
        """This run has moved."""
        for event in self._followers.get(run, ()):
            event.set()

    def tell_all(self) -> None:
        for run in self._followers:
            self.tell(run)

    @property
    def pause_s(self) -> float:
        """How long a follower waits that is told nothing."""
        return max(_LOOK_S, self._count * _EACH_S)


class Follower:
    """One who follows a run."""

    def __init__(self, moves: Moves, event: asyncio.Event) -> None:
        self._moves = moves
        self._event = event

    async def news(self) -> None:
        """Wait until the run has moved since the last wait, or another coordinator may have moved it."""
        try:
            async with asyncio.timeout(self._moves.pause_s):  # `wait_for` of Python 3.11 may swallow a cancel
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()
