"""`receive`: handing out deliveries that the caller settles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.inbox import Inbox
from hivewire.engine.outcomes import not_started
from hivewire.errors import BackendError, Closed, HivewireError
from hivewire.message import Message
from hivewire.record import VOLATILE_SHARD, Fetched
from hivewire.rules.blame import runs_alone
from hivewire.rules.lanes import Lane

log = logging.getLogger(__name__)

_RECOVER_S = 0.1
_RETRY_S = 0.1
_AHEAD = 1_000
_MOST_RECOVERED = 1_000
_END_S = 5.0


class Puller:
    """Takes from the store only for somebody who waits: what arrives for nobody is given back at once."""

    def __init__(self, inbox: Inbox, retire: Callable[[Puller], Coroutine[Any, Any, None]]) -> None:
        self.inbox = inbox
        self._retire = retire
        self._idle: asyncio.TimerHandle | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._error: HivewireError | None = None
        self._callers = 0
        self._handing = 0
        self._ended: asyncio.Event | None = None
        """Made by who waits until nothing is being handed out."""
        self._look_again = False
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def is_used(self) -> bool:
        return bool(self._callers or self.inbox.handed.open)

    async def receive(self, limit: int, wait_s: float) -> list[EngineDelivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        if not self._callers:
            self._error = None  # of a call that nobody waited for
        self._callers += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            while True:
                handed = await self._hand_out(limit)
                if handed:
                    return handed
                if self.inbox.held.ending:
                    raise Closed(f"receive from {self.inbox.queue}: the protocol was closed")
                left = deadline - loop.time()
                if left <= 0 and self._fetching is None and not self.inbox.held.lanes.ready:
                    # Ask once even when there is no time to wait.
                    if wait_s > 0:
                        return []
                    fetching = self._fetching = self._start_fetch(limit, 0.0, lanes=limit)
                    await asyncio.shield(fetching)
                    self._raise_error()
                    return await self._hand_out(limit)
                if left <= -0.05:
                    return []
                pause_s = _RETRY_S if self._look_again else left
                self._look_again = False
                await self._arrival(limit, max(min(left, pause_s), 0.0))
        finally:
            self._callers -= 1
            self._arm()
            self._nobody_waits()
            if not self._callers and not self.inbox.held.store_lanes:
                self._idle = loop.call_later(self.inbox.core.settings.lease_s, self._unused)

    async def _arrival(self, limit: int, left: float) -> None:
        if self._fetching is None:
            self._fetching = self._start_fetch(limit, left, lanes=limit)
        self.inbox.held.arrived.clear()
        try:
            async with asyncio.timeout(left + 0.05):
                await self.inbox.held.arrived.wait()
        except TimeoutError:
            return
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _start_fetch(self, limit: int, wait_s: float, *, lanes: int) -> asyncio.Task[None]:
        """One at a time: of two, the later one could bring its records first. `lanes` 0: only to get what an
        earlier call has taken."""
        return self.inbox.core.tasks.start(self._fetch(limit, wait_s, lanes), f"receive {self.inbox.queue}")

    async def _fetch(self, limit: int, wait_s: float, lanes: int) -> None:
        """In a task of its own: a caller that is cancelled does not cancel what is on its way."""
        inbox = self.inbox
        try:
            batch = await inbox.fetch(limit, wait_s, lanes=max(lanes, 1), run=1, starting=lanes)
        except HivewireError as error:
            self._error = error
            batch = ()
            if isinstance(error, BackendError) and not inbox.core.tasks.closed:
                inbox.core.tasks.start(self._recover(), f"give back {inbox.queue}")
        finally:
            self._fetching = None
            inbox.held.arrived.set()
        self._arrived(batch)

    async def _recover(self) -> None:
        """The store may have taken records for a call whose answer was lost. Should nobody ask again, they
        are fetched once more to be given back."""
        while True:
            await asyncio.sleep(_RECOVER_S)
            if self._fetching is not None:
                return  # that fetch brings them
            if not self._callers:
                self._fetching = self._start_fetch(_MOST_RECOVERED, 0.0, lanes=0)
                return

    def _arrived(self, batch: Sequence[Fetched]) -> None:
        self.inbox.take_in(batch)
        self._nobody_waits()

    def _nobody_waits(self) -> None:
        """What was taken and is not handed out goes back, so that others can have it."""
        if not self._callers and self.inbox.held.store_lanes:
            for lane in self.inbox.held.lanes.take_back(VOLATILE_SHARD):
                self.inbox.outcomes.give_back(lane)

    async def _hand_out(self, limit: int) -> list[EngineDelivery]:
        self._handing += 1
        try:
            return await self._take_out(limit)
        finally:
            self._handing -= 1
            if self._ended is not None and not self._handing:
                self._ended.set()

    async def _take_out(self, limit: int) -> list[EngineDelivery]:
        """Cancelled in between, what was taken from the lanes is given back."""
        handed: list[EngineDelivery] = []
        lane: Lane | None = None
        try:
            floor = self.inbox.core.floor
            while len(handed) < limit and not floor.alone and (lane := self._next_lane()) is not None:
                alone = runs_alone(lane.waiting[0])
                if alone and (handed or floor.running):
                    self.inbox.outcomes.put_back(lane, first=True)  # by itself, when all others are settled
                    break
                try:
                    delivery = await self._delivery(lane)
                except BackendError as error:
                    if not error.retryable:
                        raise
                    self._cannot_start(lane, error)
                    break
                if delivery is not None:
                    handed.append(delivery)
                elif lane.waiting and not lane.lost:
                    self.inbox.outcomes.put_back(lane)
                if alone:
                    break
        except BaseException:
            for taken in [lane, *(delivery.lane for delivery in handed)]:
                if taken is not None and taken.waiting and not taken.lost:
                    self.inbox.outcomes.hand_back(taken)
            raise
        # Marks of later ones were awaited: the lease of the earlier ones may have ended meanwhile.
        kept = []
        for delivery in handed:
            if delivery.lane.away:  # its shard went, and its new owner was told that it runs here
                self.inbox.outcomes.hand_back(delivery.lane)
            elif self.inbox.held.holds(delivery.lane):
                self.inbox.handed.hand_out(delivery)
                kept.append(delivery)
        return kept

    def _cannot_start(self, lane: Lane, error: BackendError) -> None:
        """A start cannot be noted yet, as while a group shares its partitions out anew: the message waits here."""
        log.warning("cannot mark a start yet", extra={"queue": self.inbox.queue, "error": str(error)})
        self._look_again = True
        if lane.waiting and not lane.lost:
            self.inbox.outcomes.put_back(lane, first=True)

    def _next_lane(self) -> Lane | None:
        return None if self.inbox.held.ending else self.inbox.held.lanes.next_lane()

    async def _delivery(self, lane: Lane) -> EngineDelivery | None:
        while lane.may_go_on:
            fetched = lane.waiting[0]
            message: Message | None = await self.inbox.admission.admit(lane)
            if message is not None and self.inbox.core.incoming is not None:
                message = await self._through_middleware(lane, message)
            if message is None:
                continue
            if not self.inbox.held.holds(lane):
                return None
            if not fetched.marked and not await self.inbox.admission.mark(fetched):
                self.inbox.held.refused(lane)
                if not lane.lost:
                    not_started(fetched)
                return None
            return None if lane.lost else EngineDelivery(self.inbox, lane, fetched, message)
        return None

    async def _through_middleware(self, lane: Lane, message: Message) -> Message | None:
        async def last(message: Message) -> Message:
            return message

        assert self.inbox.core.incoming is not None
        try:
            passed: Message = await self.inbox.core.incoming(message, last)
        except Exception as error:  # noqa: BLE001  # the user's middleware: what it raises is the outcome
            self.inbox.outcomes.outcome_of(lane, error)
            return None
        return passed

    def _arm(self) -> None:
        """See to deliveries that nobody settles in time."""
        if self._sweep is None and self.inbox.handed.open:
            soonest = min(delivery.expires_at for delivery in self.inbox.handed.open.values())
            self._sweep = asyncio.get_running_loop().call_at(soonest, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        self.inbox.handed.overdue()
        self._arm()

    def _unused(self) -> None:
        """Owned shards are not kept from others by somebody who does not read."""
        self._idle = None
        loop = asyncio.get_running_loop()
        if self.is_used:
            self._idle = loop.call_later(self.inbox.core.settings.lease_s, self._unused)
        elif not self.inbox.core.tasks.closed:
            self.inbox.core.tasks.start(self._retire(self), f"retire {self.inbox.queue}")

    async def end(self) -> None:
        """Hand out nothing more. What is being handed out is given to its caller, or back, before the store is left: a
        start that is noted there would count, and nobody would have begun."""
        self.stop()
        self.inbox.held.ending = True
        if self._handing:
            self._ended = self._ended or asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._ended.wait()

    def stop(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
