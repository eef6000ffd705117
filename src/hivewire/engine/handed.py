"""Deliveries that are with a caller: their settlement, and what becomes of those that nobody settles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set

from hivewire.engine.delivery import LOST, OPEN, EngineDelivery
from hivewire.engine.held import Watcher
from hivewire.engine.outcomes import Outcomes
from hivewire.errors import LeaseLost, QueueFull
from hivewire.record import VOLATILE_SHARD
from hivewire.rules.lanes import Lane


class Handed(Watcher):
    """The open deliveries of one inbox. Each is settled once, by its holder, by time, or by the lost lease."""

    __slots__ = ("_held", "_outcomes", "open")

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._held = outcomes.held
        self._held.watchers = (*self._held.watchers, self)
        self.open: dict[int, EngineDelivery] = {}
        """Those that `receive` handed out, by the identity of what was fetched."""

    async def ack(self, delivery: EngineDelivery) -> None:
        await self._settle_delivery(delivery, "ack", lambda: self._outcomes.done(delivery.lane))

    async def nack(self, delivery: EngineDelivery, delay_s: float | None, error: BaseException | None) -> None:
        lane = delivery.lane

        def note() -> None:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() or delay_s == 0):
                self._outcomes.not_counted(lane, 0.0)
            elif isinstance(error, QueueFull) and delay_s is None:
                self._outcomes.outcome_of(lane, error)
            else:
                self._outcomes.failed(lane, error, delay_s)

        await self._settle_delivery(delivery, "nack", note)

    async def reject(self, delivery: EngineDelivery, reason: str) -> None:
        await self._settle_delivery(delivery, "reject", lambda: self._outcomes.dead(delivery.lane, "rejected", reason))

    async def _settle_delivery(self, delivery: EngineDelivery, doing: str, note: Callable[[], object]) -> None:
        """Note the outcome now, return when it is stored. A caller that is cancelled while it waits does
        not take it back."""
        fetched = delivery.fetched
        volatile = fetched.shard == VOLATILE_SHARD
        stored: asyncio.Future[bool] | None = None
        if self._held.closed:
            delivery.state = LOST
            raise LeaseLost(f"{doing} {delivery.message.id}: the protocol was closed; it is delivered again")
        if not volatile:
            stored = self._outcomes.settling.expect(fetched)
        pulled = self._ended(delivery)
        note()
        if pulled:
            self._outcomes.let_go(delivery.lane)
        if stored is not None and not await stored:
            delivery.state = LOST
            self._held.remembered.forget(fetched)
            raise LeaseLost(f"{doing} {delivery.message.id}: the lease ended; it may be with another worker")

    def hand_out(self, delivery: EngineDelivery) -> None:
        """To somebody outside, who settles it."""
        self.open[id(delivery.fetched)] = delivery
        self._held.core.floor.enter()
        self.extend(delivery)
        self._held.metrics.messages_received += 1
        self._held.metrics.redelivered += delivery.attempt > 1
        notes = self._held.notes
        if notes is not None:
            if delivery.fetched.suspect:
                notes.taken_over(delivery.fetched)
            if notes.all or delivery.attempt > 1:
                notes.started(delivery.fetched)

    def _ended(self, delivery: EngineDelivery) -> bool:
        """Whether it was with somebody outside; now it is not."""
        if self.open.get(id(delivery.fetched)) is not delivery:
            return False
        del self.open[id(delivery.fetched)]
        self._held.core.floor.leave()
        return True

    def give_up(self, delivery: EngineDelivery) -> None:
        """It was handed out and nobody has begun with it."""
        if self._ended(delivery) and not delivery.lane.lost:
            self._outcomes.hand_back(delivery.lane)

    def overdue(self) -> float | None:
        """Take back deliveries that were not settled in their time; the next time to look."""
        now = asyncio.get_running_loop().time()
        soonest: float | None = None
        for delivery in list(self.open.values()):
            if delivery.expires_at <= now:
                delivery.state = LOST
                self._ended(delivery)
                self._outcomes.failed(delivery.lane, TimeoutError("it was not settled within its lease"), 0.0)
                self._outcomes.let_go(delivery.lane)
            elif soonest is None or delivery.expires_at < soonest:
                soonest = delivery.expires_at
        return soonest

    def extend(self, delivery: EngineDelivery) -> None:
        loop = asyncio.get_running_loop()
        settings = self._held.core.settings
        limit = settings.handler_timeout_s if delivery.held else settings.lease_s
        delivery.expires_at = loop.time() + limit

    def lost(self, shards: Set[int], lanes: Sequence[Lane]) -> None:
        """Deliveries of lost lanes count no more."""
        for delivery in list(self.open.values()):
            if delivery.lane.lost:
                delivery.state = LOST
                if self._held.notes is not None:
                    self._held.notes.note("lost", delivery.fetched, "the lease ended before it was settled")
                self._ended(delivery)

    def close(self) -> None:
        """What is still open is tried again, by somebody."""
        for delivery in list(self.open.values()):
            if delivery.state == OPEN:
                delivery.state = LOST
                self._outcomes.not_counted(delivery.lane, 0.0)
            self._ended(delivery)
