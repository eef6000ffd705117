"""Places for running handlers."""

from __future__ import annotations

import asyncio
from typing import Final

from hivewire.engine.delivery import EngineDelivery
from hivewire.rules.pace import Pace

FETCH_LIMIT: Final = 1_000


class Slot:
    """One place for a running handler. `why` tells why its task was cancelled."""

    __slots__ = ("accepted", "at", "began", "delivery", "handled", "look_at", "redelivered", "shard", "task", "why")

    def __init__(self, began: float) -> None:
        self.task: asyncio.Task[None] | None = None
        self.delivery: EngineDelivery | None = None
        self.why = ""
        self.at = began
        """When its handler was started, or the last one ended."""
        self.look_at = 0.0
        """The lease of the shard is looked at again then, and whether the type `accepted` still is."""
        self.accepted = ""
        self.handled = self.redelivered = 0
        self.begin(began)

    def begin(self, now: float) -> None:
        """A slice of time: what was looked up in the last one counts no more."""
        self.began = self.at = now
        self.shard: int | None = None


class Slots:
    """All slots of one crew, made as they are needed, and how much is taken ahead for them."""

    __slots__ = ("all", "are_kept", "concurrency", "pace")

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.pace = Pace()
        self.all: list[Slot] = []
        self.are_kept = False
        """Every slot is with a handler that lasts: nothing is taken ahead."""

    @property
    def free(self) -> int:
        return self.concurrency - sum([slot.delivery is not None for slot in self.all])

    def count(self, slot: Slot, now: float) -> tuple[int, int]:
        """A slice has ended: how many were handled in it, and how many of these not for the first time."""
        counts = slot.handled, slot.redelivered
        if slot.handled:
            self.pace.observe(slot.handled, max(now - slot.began, 1e-7))
            slot.handled = slot.redelivered = 0
        return counts
