"""One process's part of one agent's queue: what it took, in lanes, and what became of it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set
from heapq import heappop, heappush
from itertools import islice
from typing import Final

from hivewire.backend import Again, Back, Consumer, Dead, Ownership, Returned, Saved, Unfinished
from hivewire.codec import decode
from hivewire.engine.away import Away
from hivewire.engine.claims import MARK, ContentLost
from hivewire.engine.core import Core
from hivewire.engine.flag import Flag
from hivewire.engine.handed import Handed
from hivewire.engine.settling import Settling
from hivewire.engine.shards import Shards
from hivewire.engine.trail import said
from hivewire.errors import BackendError, Closed, NoHandler, QueueFull, Reject, RetryAfter, Undecodable
from hivewire.message import Message
from hivewire.protocol import ProtocolMetrics
from hivewire.record import VOLATILE_SHARD, Fetched, Record, life, message_of, names
from hivewire.rules.blame import judge
from hivewire.rules.dedup import Keys, Window
from hivewire.rules.lanes import LONG_LANE, Lane, Lanes
from hivewire.rules.retry import Retry

log = logging.getLogger(__name__)

_QUEUE_FULL_DELAY_S = 0.2
_SETTLE_RETRY_S = 0.05
_SETTLE_PACE_S = 0.005
_ROUNDING_S = 1e-6
_LEAVE_S = 10.0
_VOLATILE_KEY = "\x00volatile/"
_MOST_VOLATILE = 10_000

Accepts = Callable[[str], bool]


class Taker(ABC):
    """Who takes from an inbox and hands out by itself."""

    __slots__ = ()

    @abstractmethod
    def pushed(self) -> None:
        """Something became ready without a fetch."""

    @abstractmethod
    def news(self) -> None:
        """There may be something to fetch."""

    @abstractmethod
    def lane_lost(self, lane: Lane) -> None: ...


class Types(ABC):
    """Which types an agent takes, where the store is to be asked before anything is rejected."""

    __slots__ = ()

    @abstractmethod
    async def recheck(self, type: str) -> bool:
        """As the store says now."""


# Never written to, for the many agents in which nothing of the kind has happened yet.
_NO_IDS: Final = Window(1, 0.0)
_NO_KEYS: Final = Keys(1, 0.0)


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
        self.notes = core.notes(queue)
        self.lanes = Lanes(competing=competing, by_priority=not core.features.store_lanes)
        self.accepts = accepts
        """Whether this agent takes a type, as far as is known here."""
        self.types: Types | None = None
        self.retry_of: Callable[[str], Retry | None] | None = None
        self._handed: Handed | None = None
        self._away: Away | None = None
        self._consumer: Consumer | None = None
        self.store_lanes = core.features.leases_lanes(queue, competing=competing)
        self._shards = None if self.store_lanes else Shards(per_record_ack=core.features.per_record_ack)
        """Lanes live here where the store leases whole shards."""
        self._can_delay = core.features.delayed_append
        """The store hands out nothing before its time."""
        self._dying: dict[Hashable, None] = {}
        """Names of records whose way to the dead letters is not stored yet."""
        self._now = 0.0
        """The store's time of the last fetch: near enough for windows of minutes."""
        self._later: list[tuple[float, int, Fetched]] | tuple[()] = ()
        self._freed = Flag()
        self._giving_up = 0
        """Who waits for `_freed`: shards that are to be given up when nothing of theirs runs any more."""
        self._ties = 0
        self._remembers = not (core.features.store_lanes and core.features.remembers_settled)
        """What is settled is remembered here, too, and not by the store alone."""
        self._settled = self._window() if self._remembers else _NO_IDS
        self._keys = _NO_KEYS
        """Idempotency keys, where the store does not check them."""
        self._twins = _NO_IDS
        """Ids that two records held at one time have."""
        # Lanes that a store leases are free for others when outcomes are stored; for an owned shard's nobody waits.
        pace_s = 0.0 if self.store_lanes else _SETTLE_PACE_S
        self.settling = Settling(queue, self._store, self._stored, core.tasks, pace_s=pace_s)
        self.ending = False
        """Closing has begun: what is given back then must not be overtaken by what is still on its way here."""
        self.closed = False
        self.arrived = Flag()
        """Something became ready, or ended."""
        self.taker: Taker | None = None

    async def start(self) -> None:
        """Raises `Closed`, and leaves nothing behind, when the protocol was closed meanwhile."""
        closed = f"receive from {self.queue}: the protocol was closed"
        if self._is_over():
            raise Closed(closed)
        consumer = await self.core.backend.consume(self.queue, self.core.member(), self)
        if self._is_over():
            await consumer.close()
            raise Closed(closed)
        self._consumer = consumer
        if consumer.instant and self._shards is None:
            self.settling.instant = consumer

    def _is_over(self) -> bool:
        return self.closed or self.core.takes_no_more or self.core.tasks.closed

    @property
    def consumer(self) -> Consumer:
        if self._consumer is None or self.closed:
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        return self._consumer

    @property
    def handed(self) -> Handed:
        """What is with callers of `receive`."""
        if self._handed is None:
            self._handed = Handed(self)
        return self._handed

    @property
    def away(self) -> Away:
        """What outlives the ownership of its shard: made when the first does."""
        if self._away is None:
            self._away = Away(self)
        return self._away

    # -- what the driver tells

    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Hashable] = ()) -> None:
        if self._shards is not None:
            self._shards.gained(shard, token, saved)
        now = self.core.backend.now()
        for one in settled:
            if isinstance(one, tuple) and isinstance(one[1], str):
                self._remember_key(one[1], now)
            else:
                if self._settled is _NO_IDS:
                    self._settled = self._window()
                self._settled.add(one, now)

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        if self._shards is None:
            return {}
        await self._come_to_rest(shards, within_s)
        states = self._shards.states(shards)
        self.lost(shards)  # and with it what still runs
        return states

    async def _come_to_rest(self, shards: Set[int], within_s: float) -> list[Lane]:
        """Start nothing more, and wait for what runs. The lanes that somebody had."""
        assert self._shards is not None
        self._shards.close(shards)
        taken = self.lanes.end(shards)
        self._giving_up += 1
        try:
            async with asyncio.timeout(within_s):
                while any(lane.taken and not lane.lost for lane in taken):
                    self._freed.clear()
                    await self._freed.wait()
                await self.settling.flushed()
        except TimeoutError:
            pass
        finally:
            self._giving_up -= 1
        return taken

    async def hand_over(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        if self._shards is None:
            return {}
        await self.away.keep(await self._come_to_rest(shards, within_s))
        states = self._shards.states(shards)
        self.lost(shards)
        return states

    def renewed(self, shard: int, token: int) -> None:
        self.lost({shard})
        if self._shards is not None:
            self._shards.gained(shard, token, b"")

    def expect(self, shard: int, away: Collection[int]) -> None:
        if away:
            self.away.expect(shard, away)

    def returned(self, shard: int, token: int, at: int, back: Returned | None) -> None:
        if self._shards is not None and self._shards.has(shard, token):
            self.away.returned((shard, at), back)

    def lost_held(self) -> None:
        for lane in self.away.lost():
            if self.taker is not None:
                self.taker.lane_lost(lane)
        if self._handed is not None:
            self._handed.lost()

    def busy(self, shards: Set[int]) -> Set[int]:
        return self.lanes.busy() & shards

    def rest(self, shards: Set[int]) -> None:
        self.lanes.rest(shards)

    def go_on(self, shards: Set[int]) -> None:
        self.lanes.go_on(shards)
        self._woken()

    def lost(self, shards: Set[int]) -> None:
        if self._shards is not None:
            self._shards.lost(shards)
            if self._away is not None:
                self._away.forget(shards)
        for lane in self.lanes.lose(shards):
            self._keep_contents(lane.waiting)
            if self.taker is not None:
                self.taker.lane_lost(lane)
        if self._handed is not None:
            self._handed.lost()

    def refused(self, lane: Lane) -> None:
        """The store says that the lane is somebody else's. If that is known here already, its shard may have
        come back since, and stays."""
        if not lane.lost:
            self.lost({lane.shard})

    def news(self) -> None:
        if self.taker is not None:
            self.taker.news()

    # -- taking

    def _sample_latency(self, fetched: Fetched) -> None:
        """Once a batch: the reference's moving average."""
        metrics = self.metrics
        self._now = now = self.core.backend.now()
        metrics.average_latency += 0.2 * (max(0.0, now - fetched.stored_at) - metrics.average_latency)
        metrics.last_updated = now

    async def fetch(self, limit: int, wait_s: float, *, lanes: int, run: int, starting: int) -> Sequence[Fetched]:
        if self.ending:  # what came now would be given back, and come again at once, and so on
            raise Closed(f"receive from {self.queue}: the protocol is being closed")
        batch = await self.consumer.fetch(limit, wait_s, lanes=lanes, run=run, starting=starting)
        if batch:
            self._sample_latency(batch[0])
        elif self.closed:
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        return batch

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        """`fetch` from an instant store."""
        if self.ending:
            raise Closed(f"receive from {self.queue}: the protocol is being closed")
        batch, is_all = self.consumer.fetch_now(limit, lanes=lanes, run=run, starting=starting)
        if batch:
            self._sample_latency(batch[0])
        return batch, is_all

    def take_in(self, batch: Sequence[Fetched]) -> None:
        """Put what was fetched into its lanes."""
        if self.ending:
            if self._shards is None:
                self._turn_away(batch)
            return  # a shard goes to its next owner with all that it holds
        if self._settled is not _NO_IDS:
            self._settled.tidy(self._now)
        if self._shards is not None:
            batch, finished = self._shards.accept(batch)
            if finished:
                for fetched in finished:
                    self.remember(fetched)
                self.core.tasks.start(self._save({fetched.shard for fetched in finished}), f"commit {self.queue}")
            if not self._can_delay:
                batch = self._due(batch)
            if self._away is not None and self._away.awaited:
                batch = self._away.shut(batch)
        elif not self._remembers:
            self._look_for_twins(batch)
        self.lanes.add(batch)

    def _look_for_twins(self, batch: Sequence[Fetched]) -> None:
        """A store that leases keys and remembers what was settled knows all but the records that it hands out
        at one time: a lane is handed out again when those before are settled."""
        ids = [fetched.record.id for fetched in batch]
        if len(set(ids)) < len(ids):
            before: set[str] = set()
            for id in ids:
                if id in before:
                    if self._twins is _NO_IDS:
                        self._twins = self._window()
                    self._twins.add(id, self._now)
                before.add(id)

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
                self._ties += 1
                later = self._later = self._later or []
                heappush(later, (fetched.record.due_at, self._ties, fetched))
                asyncio.get_running_loop().call_later(fetched.record.due_at - now, self._fallen_due)
        return due

    def _fallen_due(self) -> None:
        now = self.core.backend.now()
        while type(self._later) is list and self._later and self._later[0][0] <= now + _ROUNDING_S:
            fetched = heappop(self._later)[2]
            if self._shards is not None and self._shards.owns(fetched):
                self.lanes.add([fetched])
        self._woken()

    def _woken(self) -> None:
        """Something became ready without a fetch."""
        self.arrived.set()
        if self.taker is not None:
            self.taker.pushed()

    def holds(self, lane: Lane) -> bool:
        """Whether the lane's first record may be started; if the lease has run out, all is forgotten."""
        if lane.lost or not lane.waiting:
            return False
        if lane.shard != VOLATILE_SHARD and (self._consumer is None or not self._consumer.holds(lane.waiting[0])):
            self.lost({lane.shard})
            return False
        return True

    def admit_now(self, fetched: Fetched) -> Message | None:
        """The message of a lane's first record in the plain case, when its type is accepted. None: ask `admit`."""
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
            return decode(record.body) if kept is None else kept.open()
        except Undecodable:
            return None

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
            await self.settling.flushed()  # a second one must not start before it is known whether the first is dead
            if lane.lost:
                return None
        if fetched.seen or self._is_settled(fetched):
            self.metrics.duplicates += 1
            if self.core.claims is not None:
                self.core.claims.note_duplicate(fetched)
            if self.notes is not None:
                self.notes.note("duplicate", fetched, "stored twice and handled before: dropped")
            fetched.seen = True
            self.done(lane)
            return None
        if record.ttl_s is not None and self.core.backend.now() - fetched.stored_at > record.ttl_s:
            self.metrics.expired += 1
            self._refuse(lane, "expired", f"its time to live of {record.ttl_s} s ran out")
            return None
        try:
            message = await self._opened(fetched)
        except ContentLost as error:
            self._refuse(lane, "content_lost", str(error))
            return None
        except Undecodable as error:
            self._refuse(lane, "malformed", str(error))
            return None
        if lane.lost:
            return None
        if not self.accepts(message.type) and not await self._accepts_after_all(message.type):
            if not lane.lost:
                self._refuse(lane, "unsubscribed", f"{self.queue} does not take messages of type {message.type!r}")
            return None
        return message

    async def _opened(self, fetched: Fetched) -> Message:
        if not fetched.record.body.startswith(MARK):
            return message_of(fetched.record)
        if self.core.claims is None:
            raise BackendError(
                f"read {fetched.record.id} of {self.queue}: its content lies in a blob store, and the setting blobs "
                "names none here; set it as its sender has it"
            )
        return await self.core.claims.opened(fetched)

    def _keep_contents(self, records: Iterable[Fetched]) -> None:
        if self.core.claims is not None:
            self.core.claims.kept(records)

    def _refuse(self, lane: Lane, reason: str, error: str) -> None:
        """A dead letter without a start: a mark that was stored ahead is taken back. Not by who was frozen: what it
        sees now is what became of the message elsewhere."""
        if not self.holds(lane):
            return
        self._not_started(lane.waiting[0])
        self.dead(lane, reason, error)

    @staticmethod
    def _not_started(fetched: Fetched) -> None:
        if fetched.marked:
            fetched.starts -= 1
            fetched.marked = False

    async def _accepts_after_all(self, type: str) -> bool:
        """Asked of the store before anything is rejected because of what is known here."""
        return self.types is not None and await self.types.recheck(type)

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
        if fetched.seen:
            pass  # a copy; where the first one is with another member, nobody has handled it yet
        elif self._remembers:
            record = fetched.record
            if record.replay or record.dedup_key is not None:
                self.remember(fetched)
            else:
                self._settled.new[record.id] = None
        elif self._twins.new and fetched.record.id in self._twins:
            self.remember(fetched)
        settling = self.settling
        done = settling.done
        if not done:
            settling.wake()
        done.append(fetched)
        if len(waiting) > 1:
            waiting.popleft()
            return True
        return self._next(lane)

    def dead(self, lane: Lane, reason: str, error: str) -> bool:
        fetched = lane.waiting[0]
        if fetched.shard != VOLATILE_SHARD:
            self._dying.update(dict.fromkeys(names(fetched.record)))
            self._keep_contents((fetched,))
            self.settling.add(Dead(fetched, self.core.letter(fetched, reason, error)))
        return self._next(lane)

    def _window(self) -> Window:
        return Window(self.core.settings.dedup_window_ids, self.core.settings.dedup_window_s)

    def remember(self, fetched: Fetched) -> None:
        """It is settled: what comes with its id or its key from now on is a duplicate."""
        record = fetched.record
        if self._settled is _NO_IDS:
            self._settled = self._window()
        self._settled.add(life(record), self._now)
        if record.dedup_key is not None:
            self._remember_key(record.dedup_key, fetched.stored_at)

    def _remember_key(self, key: str, at: float) -> None:
        if self._keys is _NO_KEYS:
            settings = self.core.settings
            self._keys = Keys(settings.dedup_window_ids, settings.idempotency_window_s)
        self._keys.add(key, at)

    def forget(self, fetched: Fetched) -> None:
        """Whoever acknowledged it was told that this was refused, and may undo its work: should it come here again,
        it is no duplicate."""
        self._settled.discard(life(fetched.record))
        if fetched.record.dedup_key is not None:
            self._keys.discard(fetched.record.dedup_key)

    def _is_settled(self, fetched: Fetched) -> bool:
        """Its life was settled here, or its idempotency key was used within the window."""
        record = fetched.record
        if life(record) in self._settled:
            return True
        return record.dedup_key is not None and self._keys.is_used(record.dedup_key, fetched.stored_at)

    def _next(self, lane: Lane) -> bool:
        if self.lanes.finished(lane):
            return True
        if lane.parked and not lane.lost:
            self.lanes.block(lane)
            self.core.tasks.start(self._refetch(lane), f"refetch {self.queue}")
        if self._giving_up:
            self._freed.set()
        return False

    async def _refetch(self, lane: Lane) -> None:
        """The next records of a parked lane. What arrives meanwhile is parked behind them."""
        positions = list(islice(lane.parked, LONG_LANE))
        while not lane.lost:
            try:
                batch = await self.consumer.refetch(lane.shard, positions)
            except BackendError as error:
                log.warning("cannot take parked messages yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_SETTLE_RETRY_S)
                continue
            for _ in positions:
                lane.parked.popleft()
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
            if self.notes is not None:
                self.notes.note("failed", fetched, said(error))
            self.dead(lane, "no_handler" if isinstance(error, NoHandler) else "max_attempts", _describe(error))
            return
        if delay_s is None:
            delay_s = policy.delay_s(fetched.failures, self.core.rng.random())
        if self.notes is not None:
            self.notes.note("failed", fetched, f"{said(error)}; again in {delay_s:.1f} s")
        self.metrics.nacked += 1
        self.again(lane, delay_s)

    def again(self, lane: Lane, delay_s: float) -> None:
        """Another attempt later, with the counters as they are; the lane waits for it, in the store if
        lanes are leased there, else here."""
        fetched = lane.waiting[0]
        if fetched.shard == VOLATILE_SHARD:
            self.lanes.remove(lane)
            return
        self._keep_contents((fetched,))
        self.settling.add(Again(fetched, delay_s))
        if self._shards is None:
            lane.waiting.popleft()
            self._give_back_rest(lane)
            self.lanes.remove(lane)
        else:
            fetched.marked = fetched.suspect = False
            self.lanes.block(lane)
            asyncio.get_running_loop().call_later(delay_s, self.again_now, lane)
        self._freed.set()

    def again_now(self, lane: Lane) -> None:
        """What it waited for has come."""
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
        self.let_go(lane)

    def _give_back_rest(self, lane: Lane) -> None:
        self._keep_contents(lane.waiting)
        for fetched in lane.waiting:
            if fetched.shard != VOLATILE_SHARD:
                self.settling.add(Back(fetched))
        lane.waiting.clear()

    def _turn_away(self, batch: Sequence[Fetched]) -> None:
        for fetched in batch:
            self._not_started(fetched)
            self.settling.add(Back(fetched))

    def not_counted(self, lane: Lane, delay_s: float) -> None:
        """The attempt did not come to its end and is not the message's fault."""
        if self.notes is not None:
            self.notes.note("returned", lane.waiting[0], "its attempt did not come to its end and does not count")
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

    async def _store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        if self._away is not None and self._away.running:
            return await self._away.store(done, rest)
        return await self.store_here(done, rest)

    async def store_here(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        if self._shards is not None:
            return await self._shards.settle(self.consumer, done, rest, self.core.backend.now())
        return await self.consumer.settle(done, rest)

    def _stored(self, done: Sequence[Fetched], rest: Sequence[Unfinished], lost: Set[int]) -> None:
        self.metrics.acked += len(done) - sum([fetched.seen for fetched in done])
        if lost:
            self.metrics.acked -= sum(id(fetched) in lost and not fetched.seen for fetched in done)
        for outcome in rest:
            if isinstance(outcome, Dead):
                for name in names(outcome.fetched.record):
                    self._dying.pop(name, None)
                # Only now: refused, it is no dead letter, and should it come here again, no duplicate.
                if id(outcome.fetched) not in lost:
                    self.remember(outcome.fetched)
                    self.metrics.dead += 1
        if self.notes is not None:
            self.notes.settled(done, rest, lost)
        if self.core.claims is not None and self.core.claims.open:
            self.core.claims.settled(done, lost)

    def put_back(self, lane: Lane, *, first: bool = False) -> None:
        """A taker leaves the lane before its end; `first`: it is the next."""
        if lane.away:
            self.away.give_back(lane)
        elif lane.ending:
            self.lanes.resume(lane)
            self._freed.set()
        elif first:
            self.lanes.put_first(lane)
        else:
            self.lanes.resume(lane)

    def let_go(self, lane: Lane) -> None:
        """A lane that was handed out may be handed out again."""
        if lane.away:
            self.away.give_back(lane)
        elif lane.waiting and not lane.lost and not lane.blocked:
            self.lanes.resume(lane)
        self.arrived.set()
        self._freed.set()

    # -- what no store holds

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
        self.closed = True
        self.settling.give_up()

    async def close(self) -> None:
        """Give back what is held unstarted, store what is noted, leave. Deliveries that are open come
        again when the store frees them."""
        self.ending = True
        if self.closed or self._consumer is None:
            self.closed = True
            return
        if self._handed is not None:
            self._handed.close()
        for lane in self.lanes.take_back():
            self.give_back(lane)
        try:
            async with asyncio.timeout(5.0):
                await self.settling.flushed()
        except TimeoutError:
            log.warning("closed with outcomes that are not stored", extra={"queue": self.queue})
        consumer, self.closed = self._consumer, True
        self.settling.give_up()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await consumer.close()
        except TimeoutError:
            log.warning("left without giving back; the lease runs out", extra={"queue": self.queue})


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "given back by its handler (nack)"
    return "".join(traceback.format_exception(error))
