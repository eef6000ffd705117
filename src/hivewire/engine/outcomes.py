"""What becomes of the records of one inbox: noted here, stored in batches."""

from __future__ import annotations

import asyncio
import logging
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence, Set
from itertools import islice
from typing import Final

from hivewire.backend import Again, Back, Dead, Unfinished
from hivewire.engine.held import Held
from hivewire.engine.settling import Book, Settling
from hivewire.engine.trail import said
from hivewire.errors import BackendError, NoHandler, QueueFull, Reject, RetryAfter
from hivewire.message import REPLY_PREFIX
from hivewire.record import VOLATILE_SHARD, Fetched
from hivewire.rules.lanes import LONG_LANE, Lane
from hivewire.rules.retry import Retry

log = logging.getLogger(__name__)

_QUEUE_FULL_DELAY_S: Final = 0.2
_REFETCH_RETRY_S: Final = 0.05


class Elsewhere(ABC):
    """Where outcomes go that may belong to shards which have moved."""

    __slots__ = ()

    @abstractmethod
    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """As `Book.store`."""

    @abstractmethod
    async def overtaken(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Sequence[Fetched]
    ) -> Sequence[Fetched]:
        """These were on their way to `store_here`, which refused some, perhaps because their shards moved meanwhile."""


class Outcomes(Book):
    """Each outcome takes the lane's first record off; the taker still has the lane if it holds more.

    Invariants: an outcome is noted after the handler has ended, never before, and exactly once; what was taken is
    settled, given back, or lost with the lease.
    """

    __slots__ = ("_remembered", "elsewhere", "held", "retry_of", "settling")

    def __init__(self, held: Held) -> None:
        self.held = held
        self._remembered = held.remembered
        self.retry_of: Callable[[str], Retry | None] | None = None
        self.elsewhere: Elsewhere | None = None
        """Instead of `store_here`, once outcomes may belong to shards that have moved."""
        # Lanes that a store leases are free for others when outcomes are stored; for an owned shard's nobody waits.
        pace_s = 0.0 if held.store_lanes else held.core.backend.features.settle_pace_s
        self.settling = Settling(held.queue, self, held.core.tasks, pace_s=pace_s)

    # -- finished

    def done(self, lane: Lane) -> bool:
        waiting = lane.waiting
        fetched = waiting[0]
        if fetched.shard == VOLATILE_SHARD:
            self.held.metrics.acked += 1
            return self._next(lane)
        remembered = self._remembered
        if fetched.seen:
            pass  # a copy; where the first one is with another member, nobody has handled it yet
        elif remembered.here:
            record = fetched.record
            if record.replay or record.dedup_key is not None:
                remembered.add(fetched, self.held.now)
            else:
                remembered.settled.new[record.id] = None
        elif remembered.twins.new and fetched.record.id in remembered.twins:
            remembered.add(fetched, self.held.now)
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
            self._remembered.dies(fetched)
            self.held.keep_contents((fetched,))
            self.settling.add(Dead(fetched, self.held.core.letter(fetched, reason, error)))
        return self._next(lane)

    def _next(self, lane: Lane) -> bool:
        if self.held.lanes.finished(lane):
            return True
        if lane.parked and not lane.lost:
            self._unpark(lane)
        self.held.lane_left()
        return False

    def _unpark(self, lane: Lane) -> None:
        self.held.lanes.block(lane)
        self.held.core.tasks.start(self._refetch(lane), f"refetch {self.held.queue}")

    async def _refetch(self, lane: Lane) -> None:
        """The next records of a parked lane. What arrives meanwhile is parked behind them."""
        held = self.held
        positions = list(islice(lane.parked, LONG_LANE))
        while not lane.lost:
            try:
                batch = await held.consumer.refetch(lane.shard, positions)
            except BackendError as error:
                log.warning("cannot take parked messages yet", extra={"queue": held.queue, "error": str(error)})
                await asyncio.sleep(_REFETCH_RETRY_S)
                continue
            if isinstance(lane.parked, deque):
                for _ in positions:
                    lane.parked.popleft()
            if held.shards is not None:
                batch = held.shards.accept(batch)[0]
            lane.waiting.extend(batch)
            if lane.waiting:
                self.again_now(lane)
            elif lane.parked:  # none of these is there any more
                self._unpark(lane)
            else:
                held.lanes.remove(lane)
            return

    # -- not finished

    def outcome_of(self, lane: Lane, error: BaseException) -> None:
        """What a handler's exception means."""
        if isinstance(error, Reject):
            self.dead(lane, "rejected", error.reason)
        elif isinstance(error, RetryAfter):
            self.failed(lane, error, error.delay_s)
        elif isinstance(error, QueueFull) or (
            self.held.is_internal and isinstance(error, BackendError) and error.retryable
        ):
            lane.waiting[0].starts -= 1
            self.not_counted(lane, _QUEUE_FULL_DELAY_S)
        else:
            self.failed(lane, error)

    def failed(self, lane: Lane, error: BaseException | None, delay_s: float | None = None) -> None:
        """The attempt counts: again by the policy, or dead."""
        fetched, held = lane.waiting[0], self.held
        held.metrics.messages_failed += 1
        fetched.failures += 1
        policy = self.policy(fetched.record.type)
        if fetched.failures >= policy.max_attempts:
            if held.notes is not None:
                held.notes.note("failed", fetched, said(error))
            self.dead(lane, "no_handler" if isinstance(error, NoHandler) else "max_attempts", _describe(error))
            return
        if delay_s is None:
            delay_s = policy.delay_s(fetched.failures, held.core.rng.random())
        if held.notes is not None:
            held.notes.note("failed", fetched, f"{said(error)}; again in {delay_s:.1f} s")
        held.metrics.nacked += 1
        self._again(lane, delay_s)

    def not_counted(self, lane: Lane, delay_s: float) -> None:
        """The attempt did not come to its end and is not the message's fault."""
        held = self.held
        if held.notes is not None:
            held.notes.note("returned", lane.waiting[0], "its attempt did not come to its end and does not count")
        held.metrics.nacked += 1
        self._again(lane, delay_s)

    def policy(self, type: str) -> Retry:
        own = self.retry_of(type) if self.retry_of is not None else None
        return own or self.held.core.retry

    def _again(self, lane: Lane, delay_s: float) -> None:
        """Another attempt later, with the counters as they are; the lane waits for it, in the store if
        lanes are leased there, else here."""
        held, fetched = self.held, lane.waiting[0]
        if fetched.shard == VOLATILE_SHARD:
            held.lanes.remove(lane)
            return
        held.keep_contents((fetched,))
        self.settling.add(Again(fetched, delay_s))
        if held.shards is None:
            lane.waiting.popleft()
            self._give_back_rest(lane)
            held.lanes.remove(lane)
        else:
            fetched.marked = fetched.suspect = False
            held.lanes.block(lane)
            asyncio.get_running_loop().call_later(delay_s, self.again_now, lane)
        held.lane_left()

    def again_now(self, lane: Lane) -> None:
        """What it waited for has come."""
        if self.held.lanes.unblock(lane):
            self.held.woken()

    # -- not started

    def give_back(self, lane: Lane) -> None:
        """Nothing of the lane was started."""
        not_started(lane.waiting[0])
        self._give_back_rest(lane)
        self.held.lanes.remove(lane)

    def hand_back(self, lane: Lane) -> None:
        """A taken lane was not handed out after all."""
        if self.held.shards is None:
            self.give_back(lane)
            return
        not_started(lane.waiting[0])
        self.let_go(lane)

    def turn_away(self, batch: Sequence[Fetched]) -> None:
        """What comes too late."""
        for fetched in batch:
            not_started(fetched)
            self.settling.add(Back(fetched))

    def _give_back_rest(self, lane: Lane) -> None:
        self.held.keep_contents(lane.waiting)
        for fetched in lane.waiting:
            if fetched.shard != VOLATILE_SHARD:
                self.settling.add(Back(fetched))
        lane.waiting.clear()

    def put_back(self, lane: Lane, *, first: bool = False) -> None:
        """A taker leaves the lane before its end; `first`: it is the next."""
        if lane.away:
            self._back_to_its_owner(lane)
        elif first and not lane.ending:
            self.held.lanes.put_first(lane)
        else:
            self.held.lanes.resume(lane)
            self.held.lane_left()

    def let_go(self, lane: Lane) -> None:
        """A lane that was handed out may be handed out again."""
        if lane.away:
            self._back_to_its_owner(lane)
        elif lane.waiting and not lane.lost and not lane.blocked:
            self.held.lanes.resume(lane)
        self.held.arrived.set()
        self.held.lane_left()

    def _back_to_its_owner(self, lane: Lane) -> None:
        """It was taken when its shard went, and not started: what has failed is not taken any more."""
        if lane.taken and lane.waiting:
            self.settling.add(Back(lane.waiting[0]))
            lane.waiting.clear()

    # -- stored

    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        elsewhere = self.elsewhere
        if elsewhere is not None:
            return await elsewhere.store(done, rest)
        refused = await self.store_here(done, rest)
        return refused if self.elsewhere is None else await self.elsewhere.overtaken(done, rest, refused)

    async def store_here(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        held = self.held
        if held.shards is not None:
            return await held.shards.settle(held.consumer, done, rest, held.core.backend.now())
        return await held.consumer.settle(done, rest)

    def stored(self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Set[int]) -> None:
        held = self.held
        held.metrics.acked += len(done) - sum([fetched.seen for fetched in done])
        if refused:
            held.metrics.acked -= sum(id(fetched) in refused and not fetched.seen for fetched in done)
        for outcome in rest:
            if isinstance(outcome, Dead):
                is_refused = id(outcome.fetched) in refused
                self._remembered.died(outcome.fetched, held.now, refused=is_refused)
                held.metrics.dead += not is_refused
        remembers = held.is_internal and self._remembered.may_return
        if remembers and not held.queue.startswith(REPLY_PREFIX):  # nothing is made of a reply
            for fetched in done:
                if id(fetched) not in refused:
                    self._remembered.ended(fetched, held.now)
        if held.notes is not None:
            held.notes.settled(done, rest, refused)
        if held.core.claims is not None and held.core.claims.open:
            held.core.claims.settled(done, refused)


def not_started(fetched: Fetched) -> None:
    """A mark that was stored ahead is taken back."""
    if fetched.marked:
        fetched.starts -= 1
        fetched.marked = False


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "given back by its handler (nack)"
    return "".join(traceback.format_exception(error))
