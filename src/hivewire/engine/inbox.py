"""One process's part of one agent's queue: what it took, in lanes, and what became of it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence, Set
from heapq import heappop, heappush
from itertools import count, islice

from hivewire.backend import Again, Back, Consumer, Dead, Ownership, Unfinished
from hivewire.codec import decode
from hivewire.engine.core import Core
from hivewire.engine.delivery import LOST, OPEN, EngineDelivery
from hivewire.engine.shards import Shards
from hivewire.errors import BackendError, Closed, LeaseLost, NoHandler, QueueFull, Reject, RetryAfter, Undecodable
from hivewire.message import Message
from hivewire.protocol import ProtocolMetrics
from hivewire.record import Fetched, Record, message_of, names
from hivewire.rules.blame import judge
from hivewire.rules.dedup import Window
from hivewire.rules.lanes import LONG_LANE, Lane, Lanes
from hivewire.rules.retry import Retry

log = logging.getLogger(__name__)

_QUEUE_FULL_DELAY_S = 0.2
_SETTLE_RETRY_S = 0.05
_ROUNDING_S = 1e-6
VOLATILE_SHARD = -1
_VOLATILE_KEY = "\x00volatile/"
_MOST_VOLATILE = 10_000

Accepts = Callable[[str], bool]


class Inbox(Ownership):
    """Takes records, decides which may be handed out, and stores what became of each.

    Invariants: of one key at most one record is handed out; an outcome is stored after the handler has
    ended, never before; what was taken is settled, given back, or lost with the lease; a record whose
    lease is lost is neither settled nor started.
    """

    def __init__(self, core: Core, queue: str, *, competing: bool, accepts: Accepts) -> None:
        self.core = core
        self.queue = queue
        self._internal = queue.startswith("~")
        self.metrics = ProtocolMetrics() if self._internal else core.metrics
        """Internal queues are not counted as the user's messages."""
        self.lanes = Lanes(competing=competing)
        self.accepts = accepts
        """Whether this agent takes a type, as far as is known here."""
        self.recheck: Callable[[str], Awaitable[bool]] | None = None
        self.retry_of: Callable[[str], Retry | None] | None = None
        self.open: dict[int, EngineDelivery] = {}
        """Deliveries that `receive` handed out, by the identity of what was fetched."""
        self._consumer: Consumer | None = None
        self._shards = None if core.features.store_lanes else Shards(per_record_ack=core.features.per_record_ack)
        """Lanes live here where the store leases whole shards."""
        self._dying: set[Hashable] = set()
        """Names of records whose way to the dead letters is not stored yet."""
        self._now = 0.0
        """The store's time of the last fetch: near enough for windows of minutes."""
        self._later: list[tuple[float, int, Fetched]] = []
        self._freed = asyncio.Event()
        self._ties = count()
        self._settled = Window(core.settings.dedup_window_ids, core.settings.dedup_window_s)
        self._done: list[Fetched] = []
        self._rest: list[Unfinished] = []
        self._waiting_acks: dict[int, asyncio.Future[bool]] = {}
        self._flush_wanted = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._lost_listeners: list[Callable[[Lane], None]] = []
        self._closed = False
        self.arrived = asyncio.Event()
        """Something became ready, or ended."""
        self.on_push: Callable[[], None] | None = None

    async def start(self) -> None:
        """Raises `Closed`, and leaves nothing behind, when the protocol was closed meanwhile."""
        consumer = await self.core.backend.consume(self.queue, self.core.member(), self)
        if self._closed or self.core.tasks.closed:
            await consumer.close()
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        self._consumer = consumer
        self.core.tasks.start(self._flush(), f"settle {self.queue}")

    @property
    def consumer(self) -> Consumer:
        if self._consumer is None or self._closed:
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        return self._consumer

    # -- what the driver tells

    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Hashable] = ()) -> None:
        if self._shards is not None:
            self._shards.gained(shard, token, saved)
        now = self.core.backend.now()
        for one in settled:
            self._settled.add(one, now)

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, bytes]:
        if self._shards is None:
            return {}
        self._shards.close(shards)
        taken = self.lanes.end(shards)
        try:
            async with asyncio.timeout(within_s):
                while any(lane.taken and not lane.lost for lane in taken):
                    self._freed.clear()
                    await self._freed.wait()
                await self.flushed()
        except TimeoutError:
            pass  # what still runs is lost with the shard
        states = {number: self._shards.state(number) for number in shards}
        self.lost(shards)
        return states

    def busy(self, shards: Set[int]) -> Set[int]:
        return self.lanes.busy() & shards

    def lost(self, shards: Set[int]) -> None:
        if self._shards is not None:
            self._shards.lost(shards)
        for lane in self.lanes.lose(shards):
            for tell in self._lost_listeners:
                tell(lane)
        for delivery in list(self.open.values()):
            if delivery.lane.lost:
                delivery.state = LOST
                self._ended(delivery)

    def on_lost(self, listener: Callable[[Lane], None]) -> None:
        self._lost_listeners.append(listener)

    # -- taking

    def _sample_latency(self, fetched: Fetched) -> None:
        """Once a batch: the reference's moving average."""
        metrics = self.metrics
        self._now = now = self.core.backend.now()
        metrics.average_latency += 0.2 * (max(0.0, now - fetched.stored_at) - metrics.average_latency)
        metrics.last_updated = now

    async def fetch(self, limit: int, wait_s: float, *, lanes: int, run: int, starting: int) -> Sequence[Fetched]:
        batch = await self.consumer.fetch(limit, wait_s, lanes=lanes, run=run, starting=starting)
        if batch:
            self._sample_latency(batch[0])
        elif self._closed:
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        return batch

    def take_in(self, batch: Sequence[Fetched]) -> None:
        """Put what was fetched into its lanes."""
        self._settled.tidy(self._now)
        if self._shards is not None:
            batch, finished = self._shards.accept(batch)
            if finished:
                for fetched in finished:
                    self._remember(fetched)
                self.core.tasks.start(self._save({fetched.shard for fetched in finished}), f"commit {self.queue}")
            batch = self._due(batch)
        self.lanes.add(batch)

    async def _save(self, shards: Set[int]) -> None:
        """What was finished before may have moved the watermark."""
        assert self._shards is not None
        try:
            await self._shards.save(self.consumer, shards)
        except BackendError as error:
            log.debug("watermark not stored", extra={"queue": self.queue, "error": str(error)})

    def _due(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Those whose time has come; the others wait here, in a store that cannot delay."""
        now = self.core.backend.now()
        due = []
        for fetched in batch:
            if fetched.record.due_at <= now:
                due.append(fetched)
            else:
                heappush(self._later, (fetched.record.due_at, next(self._ties), fetched))
                asyncio.get_running_loop().call_later(fetched.record.due_at - now, self._fallen_due)
        return due

    def _fallen_due(self) -> None:
        now = self.core.backend.now()
        while self._later and self._later[0][0] <= now + _ROUNDING_S:
            fetched = heappop(self._later)[2]
            if self._shards is not None and self._shards.owns(fetched):
                self.lanes.add([fetched])
        self._woken()

    def _woken(self) -> None:
        """Something became ready without a fetch."""
        self.arrived.set()
        if self.on_push is not None:
            self.on_push()

    def holds(self, lane: Lane) -> bool:
        """Whether the lane's first record may be started; if the lease has run out, all is forgotten."""
        if lane.lost or not lane.waiting:
            return False
        if lane.shard != VOLATILE_SHARD and (self._consumer is None or not self._consumer.holds(lane.waiting[0])):
            self.lost({lane.shard})
            return False
        return True

    def admit_now(self, fetched: Fetched) -> Message | None:
        """The message of a lane's first record in the plain case. None: ask `admit`."""
        record = fetched.record
        settled = self._settled
        if (
            fetched.suspect
            or fetched.seen
            or record.replay
            or record.ttl_s is not None
            or record.dedup_key is not None
            or record.id in settled.new
            or record.id in settled.old
            or (self._dying and record.id in self._dying)
        ):
            return None
        kept = record.kept
        try:
            message = decode(record.body) if kept is None else kept.open()
        except Undecodable:
            return None
        return message if self.accepts(message.type) else None

    async def admit(self, lane: Lane) -> Message | None:
        """The message of the lane's first record, if its handler may start. If not, its outcome is noted;
        the caller looks at `lane.waiting` and `lane.lost` again."""
        fetched = lane.waiting[0]
        record = fetched.record
        if fetched.suspect or fetched.died:
            judge(fetched)
            if fetched.failures >= self._policy(record.type).max_attempts:
                self._refuse(lane, "crashed", f"its handler's process died {fetched.failures} times")
                return None
        if any(name in self._dying for name in names(record)):
            await self.flushed()  # a second one must not start before it is known whether the first is dead
            if lane.lost:
                return None
        if fetched.seen or any(name in self._settled for name in names(record)):
            self.metrics.duplicates += 1
            fetched.seen = True
            self.done(lane)
            return None
        if record.ttl_s is not None and self.core.backend.now() - fetched.stored_at > record.ttl_s:
            self.metrics.expired += 1
            self._refuse(lane, "expired", f"its time to live of {record.ttl_s} s ran out")
            return None
        try:
            message = message_of(record)
        except Undecodable as error:
            self._refuse(lane, "malformed", str(error))
            return None
        if not self.accepts(message.type) and not await self._accepts_after_all(message.type):
            if not lane.lost:
                self._refuse(lane, "unsubscribed", f"{self.queue} does not take messages of type {message.type!r}")
            return None
        return message

    def _refuse(self, lane: Lane, reason: str, error: str) -> None:
        """A dead letter without a start: a mark that was stored ahead is taken back."""
        self._not_started(lane.waiting[0])
        self.dead(lane, reason, error)

    @staticmethod
    def _not_started(fetched: Fetched) -> None:
        if fetched.marked:
            fetched.starts -= 1
            fetched.marked = False

    async def _accepts_after_all(self, type: str) -> bool:
        """Asked of the store before anything is rejected because of what is known here."""
        return self.recheck is not None and await self.recheck(type)

    async def mark(self, fetched: Fetched) -> bool:
        """Store the running mark before the start; False: the lease is lost."""
        fetched.starts += 1
        fetched.marked = True
        try:
            refused = await self.start_marks([fetched])
        except BaseException:
            fetched.starts -= 1
            fetched.marked = False
            raise
        return not refused

    async def start_marks(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        if self._shards is not None:
            return await self._shards.mark(self.consumer, batch)
        return await self.consumer.start(batch)

    # -- outcomes. Each takes the lane's first record off; the taker still has the lane if it holds more.

    def done(self, lane: Lane) -> bool:
        waiting = lane.waiting
        fetched = waiting[0]
        if fetched.shard == VOLATILE_SHARD:
            self.metrics.acked += 1
            return self._next(lane)
        record = fetched.record
        if record.replay or record.dedup_key is not None:
            self._remember(fetched)
        else:
            self._settled.new[record.id] = None
        if not self._done:
            self._flush_wanted.set()
        self._done.append(fetched)
        if len(waiting) > 1:
            waiting.popleft()
            return True
        return self._next(lane)

    def dead(self, lane: Lane, reason: str, error: str) -> bool:
        fetched = lane.waiting[0]
        if fetched.shard != VOLATILE_SHARD:
            self._dying.update(names(fetched.record))
            self._rest.append(Dead(fetched, self.core.letter(fetched, reason, error)))
            self._flush_wanted.set()
        return self._next(lane)

    def _remember(self, fetched: Fetched) -> None:
        for name in names(fetched.record):
            self._settled.add(name, self._now)

    def _next(self, lane: Lane) -> bool:
        if self.lanes.finished(lane):
            return True
        if lane.parked and not lane.lost:
            self.lanes.block(lane)
            self.core.tasks.start(self._refetch(lane), f"refetch {self.queue}")
        self._freed.set()
        return False

    async def _refetch(self, lane: Lane) -> None:
        """The next records of a parked lane. What arrives meanwhile is parked behind them."""
        positions = list(islice(lane.parked, LONG_LANE))
        while not lane.lost:
            try:
                batch = await self.consumer.refetch(positions)
            except BackendError as error:
                log.warning("cannot take parked messages yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_SETTLE_RETRY_S)
                continue
            for _ in positions:
                lane.parked.popleft()
            batch = [fetched for fetched in batch if fetched.shard == lane.shard]
            if self._shards is not None:
                batch = self._shards.accept(batch)[0]
            lane.waiting.extend(batch)
            if lane.waiting and self.lanes.unblock(lane):
                self._woken()
            elif not lane.waiting:
                lane.blocked = False
                self._next_after_gap(lane)
            return

    def _next_after_gap(self, lane: Lane) -> None:
        """None of the parked records is there any more."""
        if lane.parked:
            self.lanes.block(lane)
            self.core.tasks.start(self._refetch(lane), f"refetch {self.queue}")
        else:
            self.lanes.remove(lane)

    def failed(self, lane: Lane, error: BaseException | None, delay_s: float | None = None) -> None:
        """The attempt counts: again by the policy, or dead."""
        fetched = lane.waiting[0]
        self.metrics.messages_failed += 1
        fetched.failures += 1
        policy = self._policy(fetched.record.type)
        if fetched.failures >= policy.max_attempts:
            self.dead(lane, "no_handler" if isinstance(error, NoHandler) else "max_attempts", _describe(error))
            return
        if delay_s is None:
            delay_s = policy.delay_s(fetched.failures, self.core.rng.random())
        self.metrics.nacked += 1
        self.again(lane, delay_s)

    def again(self, lane: Lane, delay_s: float) -> None:
        """Another attempt later, with the counters as they are; the lane waits for it, in the store if
        lanes are leased there, else here."""
        fetched = lane.waiting[0]
        if fetched.shard == VOLATILE_SHARD:
            self.lanes.remove(lane)
            return
        self._rest.append(Again(fetched, delay_s))
        if self._shards is None:
            lane.waiting.popleft()
            self._give_back_rest(lane)
            self.lanes.remove(lane)
        else:
            fetched.marked = fetched.suspect = False
            self.lanes.block(lane)
            asyncio.get_running_loop().call_later(delay_s, self._again_now, lane)
        self._flush_wanted.set()
        self._freed.set()

    def _again_now(self, lane: Lane) -> None:
        if self.lanes.unblock(lane):
            self._woken()

    def give_back(self, lane: Lane) -> None:
        """Nothing of the lane was started."""
        self._not_started(lane.waiting[0])
        self._give_back_rest(lane)
        self.lanes.remove(lane)

    def hand_back(self, lane: Lane) -> None:
        """A taken lane was not handed out after all."""
        if self._shards is None:
            self.give_back(lane)
            return
        self._not_started(lane.waiting[0])
        self._let_go(lane)

    def _give_back_rest(self, lane: Lane) -> None:
        self._rest.extend(Back(fetched) for fetched in lane.waiting if fetched.shard != VOLATILE_SHARD)
        lane.waiting.clear()
        self._flush_wanted.set()

    def not_counted(self, lane: Lane, delay_s: float) -> None:
        """The attempt did not come to its end and is not the message's fault."""
        self.metrics.nacked += 1
        self.again(lane, delay_s)

    def outcome_of(self, lane: Lane, error: BaseException) -> None:
        """What a handler's exception means."""
        if isinstance(error, Reject):
            self.dead(lane, "rejected", error.reason)
        elif isinstance(error, RetryAfter):
            self.failed(lane, error, error.delay_s)
        elif isinstance(error, QueueFull) or (self._internal and isinstance(error, BackendError) and error.retryable):
            lane.waiting[0].starts -= 1
            self.not_counted(lane, _QUEUE_FULL_DELAY_S)
        else:
            self.failed(lane, error)

    def _policy(self, type: str) -> Retry:
        policy = self.retry_of(type) if self.retry_of is not None else None
        return policy or self.core.retry

    # -- storing outcomes

    async def _flush(self) -> None:
        """Stores what has come together while the last batch was on its way."""
        while True:
            await self._flush_wanted.wait()
            self._flush_wanted.clear()
            self._flushed.clear()
            done, self._done = self._done, []
            rest, self._rest = self._rest, []
            if done or rest:
                try:
                    refused = await self._settle(done, rest)
                except Closed:
                    return  # abandoned
                self._tell(done, rest, refused)
            if not self._done and not self._rest:
                self._flushed.set()

    async def _settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        while True:
            try:
                if self._shards is not None:
                    return await self._shards.settle(self.consumer, done, rest)
                return await self.consumer.settle(done, rest)
            except Closed:
                raise
            except BackendError as error:
                # The outcomes are kept until the store is back. Repeating is safe: a settlement that got
                # through is refused the second time.
                log.warning("cannot store outcomes yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_SETTLE_RETRY_S)

    def _tell(self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Sequence[Fetched]) -> None:
        lost = {id(fetched) for fetched in refused}
        self.metrics.acked += len(done) - sum([fetched.seen for fetched in done])
        if lost:
            self.metrics.acked -= sum(id(fetched) in lost and not fetched.seen for fetched in done)
        for outcome in rest:
            if isinstance(outcome, Dead):
                self._dying.difference_update(names(outcome.fetched.record))
                # Only now: refused, it is no dead letter, and should it come here again, no duplicate.
                if id(outcome.fetched) not in lost:
                    self._remember(outcome.fetched)
                    self.metrics.dead += 1
        if not self._waiting_acks:
            return
        for fetched in [*done, *(outcome.fetched for outcome in rest)]:
            waiter = self._waiting_acks.pop(id(fetched), None)
            if waiter is not None and not waiter.done():
                waiter.set_result(id(fetched) not in lost)

    async def flushed(self) -> None:
        """Until everything noted so far is stored."""
        while self._done or self._rest or not self._flushed.is_set():
            self._flushed.clear()
            self._flush_wanted.set()
            await self._flushed.wait()

    # -- settlements through a Delivery

    async def ack(self, delivery: EngineDelivery) -> None:
        await self._settle_delivery(delivery, "ack", lambda: self.done(delivery.lane))

    async def nack(self, delivery: EngineDelivery, delay_s: float | None, error: BaseException | None) -> None:
        lane = delivery.lane

        def note() -> None:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() or delay_s == 0):
                self.not_counted(lane, 0.0)
            elif isinstance(error, QueueFull) and delay_s is None:
                self.outcome_of(lane, error)
            else:
                self.failed(lane, error, delay_s)

        await self._settle_delivery(delivery, "nack", note)

    async def reject(self, delivery: EngineDelivery, reason: str) -> None:
        await self._settle_delivery(delivery, "reject", lambda: self.dead(delivery.lane, "rejected", reason))

    async def _settle_delivery(self, delivery: EngineDelivery, doing: str, note: Callable[[], object]) -> None:
        """Note the outcome now, return when it is stored. A caller that is cancelled while it waits does
        not take it back."""
        fetched = delivery.fetched
        volatile = fetched.shard == VOLATILE_SHARD
        stored: asyncio.Future[bool] | None = None
        if self._closed:
            delivery.state = LOST
            raise LeaseLost(f"{doing} {delivery.message.id}: the protocol was closed; it is delivered again")
        if not volatile:
            stored = asyncio.get_running_loop().create_future()
            self._waiting_acks[id(fetched)] = stored
        pulled = self._ended(delivery)
        note()
        if pulled:
            self._let_go(delivery.lane)
        if stored is not None and not await stored:
            delivery.state = LOST
            raise LeaseLost(f"{doing} {delivery.message.id}: the lease ended; it may be with another worker")

    def _let_go(self, lane: Lane) -> None:
        """A lane that was handed out may be handed out again."""
        if lane.waiting and not lane.lost and not lane.blocked:
            self.lanes.resume(lane)
        self.arrived.set()
        self._freed.set()

    def hand_out(self, delivery: EngineDelivery) -> None:
        """To somebody outside, who settles it."""
        self.open[id(delivery.fetched)] = delivery
        self.core.floor.enter()
        self.extend(delivery)
        self.metrics.messages_received += 1
        self.metrics.redelivered += delivery.attempt > 1

    def _ended(self, delivery: EngineDelivery) -> bool:
        """Whether it was with somebody outside; now it is not."""
        if self.open.get(id(delivery.fetched)) is not delivery:
            return False
        del self.open[id(delivery.fetched)]
        self.core.floor.leave()
        return True

    def give_up(self, delivery: EngineDelivery) -> None:
        """It was handed out and nobody has begun with it."""
        if self._ended(delivery) and not delivery.lane.lost:
            self.hand_back(delivery.lane)

    def overdue(self) -> float | None:
        """Take back deliveries that were not settled in their time; the next time to look."""
        now = asyncio.get_running_loop().time()
        soonest: float | None = None
        for delivery in list(self.open.values()):
            if delivery.expires_at <= now:
                delivery.state = LOST
                self._ended(delivery)
                self.failed(delivery.lane, TimeoutError("it was not settled within its lease"), 0.0)
                self._let_go(delivery.lane)
            elif soonest is None or delivery.expires_at < soonest:
                soonest = delivery.expires_at
        return soonest

    def extend(self, delivery: EngineDelivery) -> None:
        loop = asyncio.get_running_loop()
        settings = self.core.settings
        limit = settings.handler_timeout_s if delivery.held else settings.lease_s
        delivery.expires_at = loop.time() + limit

    def push_volatile(self, id: str, body: bytes, type: str) -> None:
        """A message that no store holds: handed out once, settled nowhere, dropped when too many wait."""
        if len(self.lanes) >= _MOST_VOLATILE:
            return
        record = Record(id, f"{_VOLATILE_KEY}{id}", body, type)
        now = self.core.backend.now()
        self.lanes.add([Fetched(VOLATILE_SHARD, 0, -1, record, now, starts=1, marked=True)])
        self._woken()

    # -- ending

    def abandon(self) -> None:
        """As if the process was killed: nothing is stored any more."""
        self._closed = True
        self._nothing_stored()

    def _nothing_stored(self) -> None:
        for waiter in self._waiting_acks.values():
            if not waiter.done():
                waiter.set_result(False)
        self._waiting_acks.clear()

    async def close(self) -> None:
        """Give back what is held unstarted, store what is noted, leave. Deliveries that are open come
        again when the store frees them."""
        if self._closed or self._consumer is None:
            self._closed = True
            return
        for delivery in list(self.open.values()):
            if delivery.state == OPEN:
                delivery.state = LOST
                self.not_counted(delivery.lane, 0.0)
            self._ended(delivery)
        for lane in self.lanes.take_back():
            self.give_back(lane)
        try:
            async with asyncio.timeout(5.0):
                await self.flushed()
        except TimeoutError:
            log.warning("closed with outcomes that are not stored", extra={"queue": self.queue})
        consumer, self._closed = self._consumer, True
        self._nothing_stored()
        await consumer.close()


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "given back by its handler (nack)"
    return "".join(traceback.format_exception(error))
