"""`serve`: a fixed number of slots that run handlers, without a task for each message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence, Set
from time import monotonic
from typing import Final

from hivewire.engine.core import handling
from hivewire.engine.delivery import LOST, OPEN, SETTLED, EngineDelivery
from hivewire.engine.feeding import Feeding
from hivewire.engine.held import Taker
from hivewire.engine.inbox import Inbox
from hivewire.engine.outcomes import not_started
from hivewire.engine.slots import Slot, Slots
from hivewire.engine.watching import MARK_AFTER_S, Watch
from hivewire.errors import BackendError, Closed
from hivewire.message import Message
from hivewire.protocol import Handle
from hivewire.record import Fetched
from hivewire.rules.blame import runs_alone
from hivewire.rules.lanes import Lane

log = logging.getLogger(__name__)

_SLICE_S: Final = 0.005
_LOOK_EVERY_S: Final = 0.001
_RETRY_S: Final = 0.1
_REPEAT_CANCEL_S: Final = 1.0
_MOST_CANCELS: Final = 3


class Crew(Taker):
    """Slots take lanes and run their records one after another; one that suspends in a handler leaves the
    next lane to another slot. Slots are made as they are needed, `concurrency` at the most."""

    __slots__ = (
        "_call", "_feeding", "_handle", "_is_waking", "_loop", "_notes_all", "_sleepers", "_slots", "_stopping",
        "_time", "_watch", "inbox",
    )  # fmt: skip

    def __init__(
        self,
        inbox: Inbox,
        handle: Handle,
        concurrency: int,
        timeout_s: float,
        timeout_of: Callable[[str], float | None] | None = None,
    ) -> None:
        self.inbox = inbox
        self._handle = handle
        self._call: Handle = handle if inbox.core.incoming is None else self._through_middleware  # type: ignore[assignment]  # it is given our own deliveries only
        self._slots = Slots(concurrency)
        self._watch = Watch(inbox, self._slots, timeout_s, timeout_of)
        self._feeding = Feeding(inbox, self._slots, self._watch)
        self._sleepers: list[asyncio.Future[None]] | tuple[()] = ()
        self._notes_all = inbox.held.notes is not None and inbox.held.notes.all
        self._stopping = False
        self._is_waking = False
        """`_wake_next` will be called when the slot that runs gives the loop away."""
        self._loop = loop = asyncio.get_running_loop()
        # `loop.time` is this clock, but for loops on virtual time and for strangers: reading it directly costs less.
        is_monotonic = not hasattr(loop, "wall_time") and abs(loop.time() - monotonic()) < 1.0
        self._time = monotonic if is_monotonic else loop.time
        inbox.held.taker = self
        inbox.held.watchers = (*inbox.held.watchers, self)

    async def run(self) -> None:
        """Until nothing can be taken any more."""
        over: asyncio.Future[None] = self._loop.create_future()
        self.begin(over)
        try:
            await over
            self.check()
        finally:
            await self.drain(0.0)

    def begin(self, over: asyncio.Future[None]) -> None:
        """Take and handle; `over` is set where nothing can be taken any more. The caller waits for it, calls `check`
        and, whatever happens, `drain`: one more coroutine for each agent would be 240 bytes."""
        self._feeding.begin(over)

    def check(self) -> None:
        """Raises what ended the taking, if something did."""
        self._feeding.check()

    def news(self) -> None:
        self._feeding.news()

    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        self._feeding.came(batch, error)

    def pushed(self) -> None:
        """Somebody for the next ready lane."""
        while isinstance(self._sleepers, list) and self._sleepers:
            sleeper = self._sleepers.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return
        core, slots = self.inbox.core, self._slots
        if len(slots.all) < slots.concurrency and not (self._stopping or core.tasks.closed):
            slot = Slot(self._time())
            slots.all.append(slot)
            slot.task = core.tasks.start(self._work(slot), f"handle {self.inbox.queue}")

    def _wake_next(self) -> None:
        """A slot has the loop no more. If it suspended in a handler, the lanes that it left are for another one; quick
        handlers leave none: they finish a batch in one slot, without waking others."""
        self._is_waking = False
        if self.inbox.held.lanes.ready:
            self.pushed()

    # -- running

    async def _work(self, slot: Slot) -> None:
        handling.set(slot)
        lanes, feeding = self.inbox.held.lanes, self._feeding
        slot.begin(self._time())
        try:
            while not self._stopping:
                lane = lanes.next_lane()
                if lane is None:
                    self._end_slice(slot)
                    feeding.lane_taken()
                    await self._sleep()
                    slot.begin(self._time())
                    continue
                if lane.shard != slot.shard:
                    slot.shard, slot.look_at = lane.shard, 0.0
                if not self._is_waking and lanes.ready:
                    self._is_waking = True
                    self._loop.call_soon(self._wake_next)
                await self._run_lane(slot, lane)
                feeding.lane_taken()
                if slot.at - slot.began > _SLICE_S:
                    self._end_slice(slot)
                    await asyncio.sleep(0)
                    slot.begin(self._time())
        finally:
            self._end_slice(slot)
            self._slots.all.remove(slot)
            if not self._stopping:
                feeding.lane_taken()

    async def _sleep(self) -> None:
        sleeper = self._loop.create_future()
        sleepers = self._sleepers = self._sleepers or []
        sleepers.append(sleeper)
        await sleeper

    def _end_slice(self, slot: Slot) -> None:
        handled, redelivered = self._slots.count(slot, self._time())
        metrics = self.inbox.held.metrics
        metrics.messages_received += handled
        metrics.redelivered += redelivered

    async def _run_lane(self, slot: Slot, lane: Lane) -> None:
        """Handle this lane's records, one after another, for a slice of time.

        The loop that every message goes through: what is rare is in methods of its own.
        """
        inbox, watch, floor, time = self.inbox, self._watch, self.inbox.core.floor, self._time
        plain, done, waiting, grip = inbox.admission.plain, inbox.outcomes.done, lane.waiting, lane.grip
        try:
            while waiting and lane.grip == grip and not (lane.halted or self._stopping):
                fetched = waiting[0]
                message = plain(fetched)
                if message is None or slot.at >= slot.look_at or message.type != slot.accepted or floor.alone:
                    if message is None or floor.alone or not self._begins(slot, lane, fetched, message):
                        message = await self._looked_at(slot, lane, fetched, message)
                        if message is None:
                            continue
                elif not fetched.marked:
                    fetched.starts += 1
                delivery = slot.delivery = EngineDelivery(inbox, lane, fetched, message)
                slot.why = ""
                slot.handled += 1
                if fetched.starts > 1 or self._notes_all:
                    self._note_start(slot, fetched)
                if watch.next_at > slot.at + MARK_AFTER_S:
                    watch.begun(delivery, slot.at)
                floor.running += 1
                try:
                    await self._call(delivery)
                    if delivery.state == OPEN and not lane.lost:
                        delivery.state = SETTLED
                        done(lane)
                except BaseException as error:
                    if not self._failed(slot, delivery, error):
                        raise
                finally:
                    slot.delivery = None
                    floor.running -= 1
                    if floor.alone:
                        floor.left(fetched)
                slot.at = time()
                if slot.at - slot.began > _SLICE_S:
                    break
        finally:
            if waiting and lane.grip == grip:
                inbox.outcomes.put_back(lane)

    def _begins(self, slot: Slot, lane: Lane, fetched: Fetched, message: Message) -> bool:
        """Whether its handler may start at once, which is counted then: asked now and then, and for each new type."""
        return self.inbox.admission.types.accepts(message.type) and self._is_ours(slot, lane, fetched, message)

    def _is_ours(self, slot: Slot, lane: Lane, fetched: Fetched, message: Message) -> bool:
        if slot.at >= slot.look_at:  # a process that was frozen finds that time has passed
            if not self.inbox.held.holds(lane):
                return False
            slot.look_at = slot.at + _LOOK_EVERY_S
        slot.accepted = message.type
        if not fetched.marked:
            fetched.starts += 1
        return True

    async def _looked_at(self, slot: Slot, lane: Lane, fetched: Fetched, message: Message | None) -> Message | None:
        """The message, when its handler may start, which is counted. None: the lane is to be looked at again."""
        if message is None or not self.inbox.admission.types.accepts(message.type):
            message = await self._admit(lane)
            slot.at, slot.look_at = self._time(), 0.0
            if message is None:
                return None
        if fetched.suspect or self.inbox.core.floor.alone:
            may_start = await self._may_start(fetched, lane)
            slot.at = self._time()
            return message if may_start else None
        if lane.away:  # its shard went meanwhile: it is given back, not begun
            return None
        return message if self._is_ours(slot, lane, fetched, message) else None

    async def _admit(self, lane: Lane) -> Message | None:
        try:
            return await self.inbox.admission.admit(lane)
        except BackendError as error:
            log.warning("cannot look up subscriptions yet", extra={"queue": self.inbox.queue, "error": str(error)})
            await asyncio.sleep(_RETRY_S)
            return None

    async def _may_start(self, fetched: Fetched, lane: Lane) -> bool:
        """For what was with a process that died, or while somebody has the floor alone."""
        floor = self.inbox.core.floor
        await floor.wait()
        if not self._may_go_on(lane):
            return False
        if not fetched.suspect:
            fetched.starts += not fetched.marked
            return True
        if runs_alone(fetched, is_internal=self.inbox.held.is_internal):
            await floor.take(fetched)
        may_start = False
        try:
            if not fetched.marked and not await self.inbox.admission.mark(fetched):
                self.inbox.held.refused(lane)
            may_start = self._may_go_on(lane)
        except BackendError as error:
            log.warning("cannot mark a start yet", extra={"queue": self.inbox.queue, "error": str(error)})
            await asyncio.sleep(_RETRY_S)
        finally:
            if not may_start:
                floor.left(fetched)
        if not may_start and not lane.lost:
            not_started(fetched)
        if may_start and self.inbox.held.notes is not None:
            self.inbox.held.notes.taken_over(fetched)
        return may_start

    def _may_go_on(self, lane: Lane) -> bool:
        return not (lane.lost or lane.halted or self._stopping) and self.inbox.held.holds(lane)

    def _note_start(self, slot: Slot, fetched: Fetched) -> None:
        slot.redelivered += fetched.starts > 1
        if self.inbox.held.notes is not None:
            self.inbox.held.notes.started(fetched)

    async def _through_middleware(self, delivery: EngineDelivery) -> None:
        async def last(message: Message) -> None:
            delivery.change(message)
            await self._handle(delivery)

        assert self.inbox.core.incoming is not None
        await self.inbox.core.incoming(delivery.message, last)

    # -- what a handler raised

    def _failed(self, slot: Slot, delivery: EngineDelivery, error: BaseException) -> bool:
        """Note what a handler's exception means. False: the slot must end."""
        lane = delivery.lane
        cancelled = slot.why or (slot.task is not None and slot.task.cancelling())
        if isinstance(error, asyncio.CancelledError) and cancelled:
            return self._cancelled(slot, delivery, error)
        if isinstance(error, KeyboardInterrupt):  # but `sys.exit` in a tool that an agent calls ends no other's work
            return False
        if delivery.state == OPEN and not lane.lost:
            delivery.state = SETTLED
            self.inbox.outcomes.outcome_of(lane, error)
        elif not isinstance(error, Closed):
            log.warning("handler failed after its delivery was settled", exc_info=error)
        return True

    def _cancelled(self, slot: Slot, delivery: EngineDelivery, error: BaseException) -> bool:
        """True: it was we who cancelled the handler, and the slot goes on. One that cancelled itself has failed; its
        slot ends, for it cannot be told from one whose loop ends."""
        lane = delivery.lane
        why, slot.why = slot.why, ""
        open_still = delivery.state == OPEN and not lane.lost
        if open_still:
            delivery.state = SETTLED
        if why == "timeout":
            if open_still:
                limit_s = self._watch.limit_s(delivery)
                self.inbox.outcomes.failed(lane, TimeoutError(f"its handler ran longer than {limit_s} s"))
        elif open_still and (why or self.inbox.core.tasks.closed):
            self.inbox.outcomes.not_counted(lane, 0.0)
        elif open_still:
            self.inbox.outcomes.outcome_of(lane, error)
        if why and slot.task is not None:
            slot.task.uncancel()
        return why in ("timeout", "lost")

    def lost(self, shards: Set[int], lanes: Sequence[Lane]) -> None:
        notes = self.inbox.held.notes
        for slot in self._slots.all:
            delivery = slot.delivery
            if delivery is not None and delivery.lane in lanes:
                delivery.state = LOST
                if notes is not None:
                    notes.note("lost", delivery.fetched, "the lease ended while its handler ran")
                self._watch.cancel(slot, "lost")

    # -- ending

    async def drain(self, drain_s: float) -> None:
        """Start nothing more; what runs may finish; then it is cancelled and given back."""
        self._stopping = True
        self._feeding.stop()
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        tasks = {slot.task for slot in self._slots.all if slot.task is not None}
        if tasks and drain_s > 0:
            await asyncio.wait(tasks, timeout=drain_s)
        for _ in range(_MOST_CANCELS):
            tasks = {slot.task for slot in self._slots.all if slot.task is not None and not slot.task.done()}
            if not tasks:
                break
            for slot in self._slots.all:
                slot.why = "drain"
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_REPEAT_CANCEL_S)
        self._watch.stop()
