"""Who waits at a simulated store for something new."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Final

from hivewire.testing.virtual_loop import VirtualLoop
from hivewire.testing.virtual_waits import WAKE

_SOONEST_S: Final = 0.001
"""What falls due is looked for no sooner than this after the last look."""


class _Waiting:
    """One request that waits; `is_answered` says whether the store would answer it now."""

    __slots__ = ("ended", "is_answered")

    def __init__(self, ended: asyncio.Future[None], is_answered: Callable[[], bool]) -> None:
        self.ended = ended
        self.is_answered = is_answered


class Bells:
    """A request waits at its bell. When something happens there, the store looks once which requests it can answer, and
    leaves the others waiting: as a server does, which sends nothing where it has nothing to say."""

    def __init__(self, loop: VirtualLoop, falls_due: Callable[[str], float | None]) -> None:
        """`falls_due`: when something may happen at a bell by itself, by the loop's time."""
        self._loop = loop
        self._falls_due = falls_due
        self._context = contextvars.copy_context()
        """The store's own: nothing in it stands still when a process is stopped."""
        self._waiting: dict[str, list[_Waiting]] = {}
        self._rung: set[str] = set()
        """Looked at before anything else runs that is not ready yet."""
        self._alarms: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        """When each bell rings by itself."""

    def ring(self, bell: str) -> None:
        if bell in self._waiting and bell not in self._rung:
            self._rung.add(bell)
            self._loop.call_soon(self._answer, bell, context=self._context)

    async def wait(self, bell: str, until: float, is_answered: Callable[[], bool] = lambda: True) -> None:
        """Until something happens there to which the store has an answer, or until then by the loop's time."""
        ended: asyncio.Future[None] = self._loop.create_future()
        waiting = self._waiting.setdefault(bell, [])
        mine = _Waiting(ended, is_answered)
        waiting.append(mine)
        self._set_alarm(bell)
        timer = self._loop.call_at(max(until, self._loop.time() + _SOONEST_S), WAKE, ended, None)
        try:
            await ended
        finally:
            timer.cancel()
            if mine in waiting:
                waiting.remove(mine)

    def _set_alarm(self, bell: str) -> None:
        due = self._falls_due(bell)
        present = self._alarms.get(bell)
        if due is None or (present is not None and present[0] <= due):
            return
        if present is not None:
            present[1].cancel()
        timer = self._loop.call_at(max(due, self._loop.time() + _SOONEST_S), self._alarm, bell, context=self._context)
        self._alarms[bell] = due, timer

    def _alarm(self, bell: str) -> None:
        del self._alarms[bell]
        self._answer(bell)

    def _answer(self, bell: str) -> None:
        self._rung.discard(bell)
        waiting = self._waiting.get(bell)
        if not waiting:
            return
        for one in list(waiting):
            if one.ended.done():
                waiting.remove(one)  # its time has passed, or it was cancelled, in a process that is stopped
            elif one.is_answered():
                waiting.remove(one)
                one.ended.set_result(None)
        if waiting:
            self._set_alarm(bell)
