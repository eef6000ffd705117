"""Seeing to handlers that last: one timer for all of a crew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Final

from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.inbox import Inbox
from hivewire.engine.slots import Slot, Slots
from hivewire.errors import BackendError, Closed
from hivewire.record import VOLATILE_SHARD, Fetched

log = logging.getLogger(__name__)

MARK_AFTER_S: Final = 0.02
_KEEP_AHEAD_S: Final = 0.2
_REPEAT_CANCEL_S: Final = 1.0


class Watch:
    """Marks handlers that last, cancels those that last too long, gives back what they keep from others.

    Invariant: while a handler runs that is not marked, or has a limit, `next_at` is a time at which it is looked at.
    """

    __slots__ = ("_inbox", "_limit_of", "_limit_s", "_loop", "_slots", "_timer", "next_at")

    def __init__(
        self, inbox: Inbox, slots: Slots, limit_s: float, limit_of: Callable[[str], float | None] | None
    ) -> None:
        """`limit_of`: by type, instead of `limit_s`."""
        self._inbox = inbox
        self._slots = slots
        self._limit_s = limit_s
        self._limit_of = limit_of
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.next_at = inf

    def limit_s(self, delivery: EngineDelivery) -> float:
        own = None if self._limit_of is None else self._limit_of(delivery.message.type)
        return self._limit_s if own is None else own

    def begun(self, delivery: EngineDelivery, now: float) -> None:
        self._look_by(now + min(self.limit_s(delivery), MARK_AFTER_S))

    def taken_ahead(self) -> None:
        """More lanes are here than slots are free."""
        self._look_by(self._loop.time() + _KEEP_AHEAD_S)

    def _look_by(self, at: float) -> None:
        if at < self.next_at:
            self.stop()
            self._timer, self.next_at = self._loop.call_at(at, self._look), at

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.next_at = None, inf

    def _look(self) -> None:
        self._timer, self.next_at = None, inf
        core = self._inbox.core
        if core.tasks.closed:
            return
        now = self._loop.time()
        unmarked: list[Fetched] = []
        again_at = min(
            [
                self._look_at(slot, slot.delivery, now, unmarked)
                for slot in self._slots.all
                if slot.delivery is not None
            ],
            default=inf,
        )
        again_at = min(again_at, self._let_others_have(now))
        if unmarked:
            core.tasks.start(self._mark(unmarked), f"mark {self._inbox.queue}")
        if again_at < inf:
            self._look_by(again_at)

    def _look_at(self, slot: Slot, delivery: EngineDelivery, now: float, unmarked: list[Fetched]) -> float:
        """When to look again."""
        due = slot.at + self.limit_s(delivery)
        if due <= now:
            self.cancel(slot, "timeout")
            due = now + _REPEAT_CANCEL_S
        if not delivery.fetched.marked:
            mark_at = slot.at + MARK_AFTER_S
            if mark_at > now:
                return min(due, mark_at)
            delivery.fetched.marked = True
            unmarked.append(delivery.fetched)
        return due

    async def _mark(self, unmarked: list[Fetched]) -> None:
        """Written behind: a start that is not marked when the process dies is not counted."""
        try:
            await self._inbox.held.mark(unmarked)
        except (BackendError, Closed) as error:
            log.debug("running marks not stored", extra={"queue": self._inbox.queue, "error": str(error)})

    def _let_others_have(self, now: float) -> float:
        """What was taken ahead goes back when every slot is kept by a handler that lasts, so that an idle member
        can take it. When to look again."""
        slots, held = self._slots, self._inbox.held
        if not held.store_lanes or not held.lanes.ready or len(slots.all) < slots.concurrency:
            return inf
        latest = max((slot.at if slot.delivery is not None else now for slot in slots.all), default=now)
        if latest + _KEEP_AHEAD_S > now:
            return latest + _KEEP_AHEAD_S
        slots.are_kept = True
        for lane in held.lanes.take_back(VOLATILE_SHARD):
            self._inbox.outcomes.give_back(lane)
        return inf

    @staticmethod
    def cancel(slot: Slot, why: str) -> None:
        if slot.task is not None and slot.delivery is not None:
            slot.why = why
            slot.task.cancel(why)
