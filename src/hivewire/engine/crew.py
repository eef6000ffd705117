"""`serve`: a fixed number of slots that run handlers, without a task for each message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic

from hivewire.engine.core import handling
from hivewire.engine.delivery import LOST, OPEN, SETTLED, EngineDelivery
from hivewire.engine.inbox import Inbox, Taker
from hivewire.engine.outage import Outage
from hivewire.errors import BackendError, Closed
from hivewire.message import Message
from hivewire.protocol import Handle
from hivewire.record import VOLATILE_SHARD, Fetched
from hivewire.rules.blame import runs_alone
from hivewire.rules.lanes import Lane
from hivewire.rules.pace import Pace

log = logging.getLogger(__name__)

_MARK_AFTER_S = 0.02
_KEEP_AHEAD_S = 0.2
_SLICE_S = 0.005
_LOOK_EVERY_S = 0.001
_FETCH_LIMIT = 1_000
_FETCH_WAIT_S = 60.0
_FETCH_RETRY_S = 0.1
_REPEAT_CANCEL_S = 1.0
_MOST_CANCELS = 3


class Slot:
    """One place for a running handler. `why` tells why its task was cancelled."""

    __slots__ = ("cancel_at", "delivery", "started_at", "task", "why")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.delivery: EngineDelivery | None = None
        self.started_at = 0.0
        self.cancel_at = 0.0
        self.why = ""


class Crew(Taker):
    """Slots take lanes and run their records one after another; one that suspends in a handler leaves the
    next lane to another slot. Slots are made as they are needed, `concurrency` at the most."""

    def __init__(
        self,
        inbox: Inbox,
        handle: Handle,
        concurrency: int,
        timeout_s: float,
        timeout_of: Callable[[str], float | None] | None = None,
    ) -> None:
        self.inbox = inbox
        self._core = inbox.core
        self._handle = handle
        self._call: Handle = handle if inbox.core.incoming is None else self._through_middleware  # type: ignore[assignment]  # it is given our own deliveries only
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._timeout_of = timeout_of
        self._pace = Pace()
        self._slots: list[Slot] = []
        self._sleepers: list[asyncio.Future[None]] | tuple[()] = ()
        self._hungry: asyncio.Future[None] | None = None
        self._stopping = False
        self._is_waking = False
        """`_wake_next` will be called when the slot that runs gives the loop away."""
        self._is_kept = False
        """Every slot is with a handler that lasts: nothing is taken ahead."""
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = inf
        self._loop = loop = asyncio.get_running_loop()
        # `loop.time` is this clock, but for loops on virtual time and for strangers: reading it directly costs less.
        is_monotonic = not hasattr(loop, "wall_time") and abs(loop.time() - monotonic()) < 1.0
        self._time = monotonic if is_monotonic else loop.time
        self._feeder: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] | None = None
        """Done when nothing more can be taken, or nothing is to be."""
        self._is_called = False
        """`_feed_now` is about to run."""
        self._is_hungry = False
        """It waits for a slot to take a lane."""
        inbox.taker = self

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
        self._over = over
        if self.inbox.consumer.instant:
            self.news()
        else:
            self._feeder = self._core.tasks.start(self._feed(), f"take {self.inbox.queue}")
            self._feeder.add_done_callback(self._is_over)

    def check(self) -> None:
        """Raises what ended the taking, if something did."""
        if self._feeder is not None and self._feeder.done() and not self._feeder.cancelled():
            self._feeder.result()

    def _is_over(self, _: object = None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # -- taking

    def news(self) -> None:
        if not (self._is_called or self._stopping):
            self._is_called = True
            self._loop.call_soon(self._feed_now)

    def _feed_now(self) -> None:
        """`_feed` from an instant store: no task waits for news."""
        self._is_called = False
        while not self._stopping:
            free, ready, lanes = self._room()
            if lanes <= ready:
                self._is_hungry = True
                return
            try:
                batch, is_all = self.inbox.fetch_now(
                    _FETCH_LIMIT, lanes=lanes, run=_FETCH_LIMIT, starting=max(free - ready, 0)
                )
                if batch:
                    self._take_in(batch, free)
            except Closed:
                self._is_over()
                return
            except Exception as error:  # noqa: BLE001  # told to whoever waits for the end, as a task's would be
                if self._over is not None and not self._over.done():
                    self._over.set_exception(error)
                return
            if is_all:
                return

    def _room(self) -> tuple[int, int, int]:
        """Free slots, lanes that are ready, and how many are wanted in all."""
        busy = sum([slot.delivery is not None for slot in self._slots])
        free, ready = self._concurrency - busy, len(self.inbox.lanes.ready)
        return free, ready, self._wanted(free, ready)

    def _take_in(self, batch: Sequence[Fetched], free: int) -> None:
        self.inbox.take_in(batch)
        self.pushed()
        if self.inbox.store_lanes and len(self.inbox.lanes.ready) > free:
            self._look_by(self._loop.time() + _KEEP_AHEAD_S)

    async def _feed(self) -> None:
        outage = Outage(log, "take messages", self.inbox.queue)
        while not self._stopping:
            free, ready, lanes = self._room()
            if lanes <= ready:  # half is left: no need to ask for a few
                self._hungry = self._loop.create_future()
                await self._hungry
                continue
            try:
                batch = await self.inbox.fetch(
                    _FETCH_LIMIT, _FETCH_WAIT_S, lanes=lanes, run=_FETCH_LIMIT, starting=max(free - ready, 0)
                )
            except BackendError as error:
                outage.goes_on(error)
                await asyncio.sleep(_FETCH_RETRY_S)
                continue
            except Closed:
                return
            outage.is_over()
            if batch:
                self._take_in(batch, free)

    def _wanted(self, free: int, ready: int) -> int:
        if self._is_kept:
            return 0
        if self.inbox.store_lanes:
            return self._pace.lanes(self._concurrency, free) - ready
        # Owned shards keep nothing from others: only memory bounds what is taken ahead.
        return _FETCH_LIMIT if self.inbox.lanes.active < _FETCH_LIMIT else 0

    def _fed_up_to(self) -> None:
        """A slot has taken a lane: see whether the feeder should go on."""
        self._is_kept = False
        if self._is_hungry:
            self._is_hungry = False
            self.news()
        hungry = self._hungry
        if hungry is not None and not hungry.done():
            hungry.set_result(None)

    def pushed(self) -> None:
        """Somebody for the next ready lane."""
        while isinstance(self._sleepers, list) and self._sleepers:
            sleeper = self._sleepers.pop()
            if not sleeper.done():
                sleeper.set_result(None)
                return
        if len(self._slots) < self._concurrency and not (self._stopping or self._core.tasks.closed):
            self._add_slot()

    def _wake_next(self) -> None:
        """A slot has the loop no more. If it suspended in a handler, the lanes that it left are for another one; quick
        handlers leave none: they finish a batch in one slot, without waking others."""
        self._is_waking = False
        if self.inbox.lanes.ready:
            self.pushed()

    def _add_slot(self) -> None:
        slot = Slot()
        self._slots.append(slot)
        slot.task = self._core.tasks.start(self._work(slot), f"handle {self.inbox.queue}")

    # -- running

    async def _work(self, slot: Slot) -> None:
        handling.set(slot)
        lanes = self.inbox.lanes
        try:
            while not self._stopping:
                lane = lanes.next_lane()
                if lane is None:
                    self._fed_up_to()
                    sleeper = self._loop.create_future()
                    sleepers = self._sleepers = self._sleepers or []
                    sleepers.append(sleeper)
                    await sleeper
                    continue
                await self._run_lanes(slot, lane)
        finally:
            self._slots.remove(slot)
            if not self._stopping:
                self._fed_up_to()

    async def _run_lanes(self, slot: Slot, lane: Lane | None) -> None:
        """Handle this lane's records, one after another, and those of the next ready lanes, for a slice of time.

        The loop that every message goes through: what is rare is in methods of its own.
        """
        inbox, floor, time = self.inbox, self._core.floor, self._time
        lanes, notes = inbox.lanes, inbox.notes
        notes_all = notes is not None and notes.all
        began = now = time()
        look_at, shard = 0.0, None
        accepted = ""
        """The type that was looked up last."""
        handled = redelivered = 0
        try:
            while lane is not None:
                waiting, grip = lane.waiting, lane.grip
                if lane.shard != shard:
                    look_at, shard = 0.0, lane.shard
                if not self._is_waking and lanes.ready:
                    self._is_waking = True
                    self._loop.call_soon(self._wake_next)
                try:
                    while waiting and lane.grip == grip and not (lane.halted or self._stopping):
                        fetched = waiting[0]
                        message = inbox.admit_now(fetched)
                        if message is None or (
                            (message.type != accepted or now >= look_at) and not inbox.accepts(message.type)
                        ):
                            message = await self._admit(lane)
                            now, look_at = time(), 0.0
                            if message is None:
                                continue
                        if fetched.suspect or floor.alone:
                            if not await self._may_start(fetched, lane):
                                break
                        else:
                            if now >= look_at:  # a process that was frozen finds that time has passed
                                if not inbox.holds(lane):
                                    break
                                look_at, accepted = now + _LOOK_EVERY_S, message.type
                            if not fetched.marked:
                                fetched.starts += 1
                        delivery = slot.delivery = EngineDelivery(inbox, lane, fetched, message)
                        slot.started_at = now
                        slot.why = ""
                        handled += 1
                        if fetched.starts > 1 or notes_all:
                            redelivered += fetched.starts > 1
                            if notes is not None:
                                notes.started(fetched)
                        if self._sweep_at > now + _MARK_AFTER_S or self._timeout_of is not None:
                            self._watch(delivery, now)
                        floor.running += 1
                        try:
                            await self._call(delivery)
                            if delivery.state == OPEN and not lane.lost:
                                delivery.state = SETTLED
                                inbox.done(lane)
                        except BaseException as error:
                            if not self._failed(slot, delivery, error):
                                raise
                        finally:
                            slot.delivery = None
                            floor.running -= 1
                            if floor.alone:
                                floor.left(fetched)
                        now = time()
                        if now - began > _SLICE_S:
                            await asyncio.sleep(0)
                            break
                finally:
                    if waiting and lane.grip == grip:
                        inbox.put_back(lane)
                self._fed_up_to()
                lane = None if self._stopping or now - began > _SLICE_S else lanes.next_lane()
        finally:
            if handled:
                inbox.metrics.messages_received += handled
                inbox.metrics.redelivered += redelivered
                self._pace.observe(handled, max(time() - began, 1e-7))

    async def _admit(self, lane: Lane) -> Message | None:
        try:
            return await self.inbox.admit(lane)
        except BackendError as error:
            log.warning("cannot look up subscriptions yet", extra={"queue": self.inbox.queue, "error": str(error)})
            await asyncio.sleep(_FETCH_RETRY_S)
            return None

    async def _may_start(self, fetched: Fetched, lane: Lane) -> bool:
        """For what was with a process that died, or while somebody has the floor alone."""
        await self._core.floor.wait()
        if not self._may_go_on(lane):
            return False
        if not fetched.suspect:
            fetched.starts += not fetched.marked
            return True
        if runs_alone(fetched):
            await self._core.floor.take(fetched)
        may_start = False
        try:
            if not fetched.marked and not await self.inbox.mark(fetched):
                self.inbox.refused(lane)
            may_start = self._may_go_on(lane)
        except BackendError as error:
            log.warning("cannot mark a start yet", extra={"queue": self.inbox.queue, "error": str(error)})
            await asyncio.sleep(_FETCH_RETRY_S)
        finally:
            if not may_start:
                self._core.floor.left(fetched)
        if not may_start and not lane.lost and fetched.marked:
            fetched.starts -= 1
            fetched.marked = False
        if may_start and self.inbox.notes is not None:
            self.inbox.notes.taken_over(fetched)
        return may_start

    def _may_go_on(self, lane: Lane) -> bool:
        return not (lane.lost or lane.halted or self._stopping) and self.inbox.holds(lane)

    def _watch(self, delivery: EngineDelivery, now: float) -> None:
        """See that the handler is marked when it lasts, and cancelled when it lasts too long."""
        if self._timeout_of is not None:
            delivery.timeout_s = self._timeout_of(delivery.message.type)
        self._look_by(now + (self._limit(delivery) if delivery.fetched.marked else _MARK_AFTER_S))

    async def _through_middleware(self, delivery: EngineDelivery) -> None:
        async def last(message: Message) -> None:
            delivery.change(message)
            await self._handle(delivery)

        assert self._core.incoming is not None
        await self._core.incoming(delivery.message, last)

    def _failed(self, slot: Slot, delivery: EngineDelivery, error: BaseException) -> bool:
        """Note what a handler's exception means. False: the slot must end."""
        lane = delivery.lane
        cancelled = slot.why or (slot.task is not None and slot.task.cancelling())
        if isinstance(error, asyncio.CancelledError) and cancelled:
            return self._cancelled(slot, delivery, lane)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return False
        if delivery.state == OPEN and not lane.lost:
            delivery.state = SETTLED
            self.inbox.outcome_of(lane, error)
        elif not isinstance(error, Closed):
            log.warning("handler failed after its delivery was settled", exc_info=error)
        return True

    def _cancelled(self, slot: Slot, delivery: EngineDelivery, lane: Lane) -> bool:
        """True: it was we who cancelled the handler, and the slot goes on."""
        why, slot.why = slot.why, ""
        open_still = delivery.state == OPEN and not lane.lost
        if open_still:
            delivery.state = SETTLED
        if why == "timeout":
            if open_still:
                self.inbox.failed(lane, TimeoutError(f"its handler ran longer than {self._limit(delivery)} s"))
        elif open_still:
            self.inbox.not_counted(lane, 0.0)
        if why and slot.task is not None:
            slot.task.uncancel()
        return why in ("timeout", "lost")

    def _limit(self, delivery: EngineDelivery) -> float:
        return self._timeout_s if delivery.timeout_s is None else delivery.timeout_s

    # -- watching

    def _swept(self) -> None:
        """Mark handlers that last, cancel those that last too long. One timer for all."""
        self._sweep, self._sweep_at = None, inf
        if self._core.tasks.closed:
            return
        now = self._loop.time()
        unmarked: list[Fetched] = []
        again_at: float | None = None
        for slot in self._slots:
            delivery = slot.delivery
            if delivery is None:
                continue
            due = slot.started_at + self._limit(delivery)
            if due <= now:
                self._cancel(slot, "timeout")
                due = now + _REPEAT_CANCEL_S
            if not delivery.fetched.marked:
                mark_at = slot.started_at + _MARK_AFTER_S
                if mark_at <= now:
                    delivery.fetched.marked = True
                    unmarked.append(delivery.fetched)
                else:
                    due = min(due, mark_at)
            again_at = due if again_at is None else min(again_at, due)
        keep_until = self._let_others_have(now)
        if keep_until is not None:
            again_at = keep_until if again_at is None else min(again_at, keep_until)
        if unmarked:
            self._core.tasks.start(self._mark(unmarked), f"mark {self.inbox.queue}")
        if again_at is not None:
            self._arm(again_at)

    def _let_others_have(self, now: float) -> float | None:
        """What was taken ahead goes back when every slot is kept by a handler that lasts, so that an idle member
        can take it. When to look again."""
        if not self.inbox.store_lanes or not self.inbox.lanes.ready or len(self._slots) < self._concurrency:
            return None
        latest = max((slot.started_at if slot.delivery is not None else now for slot in self._slots), default=now)
        if latest + _KEEP_AHEAD_S > now:
            return latest + _KEEP_AHEAD_S
        self._is_kept = True
        for lane in self.inbox.lanes.take_back(VOLATILE_SHARD):
            self.inbox.give_back(lane)
        return None

    def _look_by(self, at: float) -> None:
        if at < self._sweep_at:
            self._arm(at)

    def _arm(self, at: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep, self._sweep_at = self._loop.call_at(at, self._swept), at

    async def _mark(self, unmarked: list[Fetched]) -> None:
        """Written behind: a start that is not marked when the process dies is not counted."""
        try:
            await self.inbox.start_marks(unmarked)
        except (BackendError, Closed) as error:
            log.debug("running marks not stored", extra={"queue": self.inbox.queue, "error": str(error)})

    def _cancel(self, slot: Slot, why: str) -> None:
        if slot.task is not None and slot.delivery is not None:
            slot.why = why
            slot.task.cancel(why)

    def lane_lost(self, lane: Lane) -> None:
        for slot in self._slots:
            if slot.delivery is not None and slot.delivery.lane is lane:
                slot.delivery.state = LOST
                if self.inbox.notes is not None:
                    self.inbox.notes.note("lost", slot.delivery.fetched, "the lease ended while its handler ran")
                self._cancel(slot, "lost")

    # -- ending

    async def drain(self, drain_s: float) -> None:
        """Start nothing more; what runs may finish; then it is cancelled and given back."""
        self._stopping = True
        if self._feeder is not None:
            self._feeder.cancel()
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        tasks = {slot.task for slot in self._slots if slot.task is not None}
        if tasks and drain_s > 0:
            await asyncio.wait(tasks, timeout=drain_s)
        for _ in range(_MOST_CANCELS):
            tasks = {slot.task for slot in self._slots if slot.task is not None and not slot.task.done()}
            if not tasks:
                break
            for slot in self._slots:
                slot.why = "drain"
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_REPEAT_CANCEL_S)
        if self._sweep is not None:
            self._sweep.cancel()
