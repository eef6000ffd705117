"""Whether the handler of a record may start, and with which message."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hivewire.codec import decode
from hivewire.engine.claims import MARK, ContentLost
from hivewire.engine.outcomes import Outcomes, not_started
from hivewire.errors import BackendError, Undecodable
from hivewire.message import Message
from hivewire.record import Fetched, message_of
from hivewire.rules.blame import is_killer, judge
from hivewire.rules.lanes import Lane


class Types(ABC):
    """Which types an agent takes."""

    __slots__ = ()

    @abstractmethod
    def accepts(self, type: str) -> bool:
        """As far as is known here."""

    @abstractmethod
    async def recheck(self, type: str) -> bool:
        """As the store says now: it is asked before anything is rejected."""


class AllTypes(Types):
    """Of internal queues."""

    __slots__ = ()

    def accepts(self, type: str) -> bool:
        return True

    async def recheck(self, type: str) -> bool:
        return True


class Admission:
    """Of one inbox. Invariant: what is not admitted has an outcome, or its lease is lost, or it is asked for again."""

    __slots__ = ("_held", "_outcomes", "_remembered", "types")

    def __init__(self, outcomes: Outcomes, types: Types) -> None:
        self._outcomes = outcomes
        self._held = outcomes.held
        self._remembered = outcomes.held.remembered
        self.types = types

    def plain(self, fetched: Fetched) -> Message | None:
        """The message of a lane's first record in the plain case, when its type is accepted. None: ask `admit`."""
        record = fetched.record
        remembered = self._remembered
        settled = remembered.settled
        if (
            fetched.suspect
            or fetched.seen
            or fetched.failures
            or record.replay
            or record.ttl_s is not None
            or record.dedup_key is not None
            or record.id in settled.new
            or record.id in settled.old
            or (remembered.dying and record.id in remembered.dying)
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
        if self._is_used_up(lane, fetched):
            return None
        if self._remembered.is_dying(fetched):
            # A second one must not start before it is known whether the first is dead.
            await self._outcomes.settling.flushed()
            if lane.lost:
                return None
        if self._remembered.has_ended(fetched):
            is_there = await self._is_there(fetched)
            if lane.lost:
                return None
            if is_there:
                self._remembered.forget(fetched)  # the store has undone the last that it had confirmed
        if self._is_duplicate(lane, fetched) or self._is_expired(lane, fetched):
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
        if not self.types.accepts(message.type) and not await self.types.recheck(message.type):
            if not lane.lost:
                queue = self._held.queue
                self._refuse(lane, "unsubscribed", f"{queue} does not take messages of type {message.type!r}")
            return None
        return message

    def _is_used_up(self, lane: Lane, fetched: Fetched) -> bool:
        """It has had all its attempts, and its last owner did not come to the end of burying it."""
        has_died = bool(fetched.suspect or fetched.died)
        if not (has_died or fetched.failures):
            return False
        is_internal = self._held.is_internal
        judge(fetched, is_internal=is_internal)
        max_attempts = self._outcomes.policy(fetched.record.type).max_attempts
        if has_died and is_killer(fetched, max_attempts, is_internal=is_internal):
            if is_internal:
                why = f"its process died {fetched.crashes} times"
            else:
                why = f"its handler's process died; {fetched.failures} attempts have failed, {max_attempts} are allowed"
            self._refuse(lane, "crashed", why)
            return True
        if not has_died and fetched.failures >= max_attempts:
            why = f"{fetched.failures} attempts have failed, and {max_attempts} are allowed"
            self._refuse(lane, "max_attempts", f"{why}; the log of the last worker says why")
            return True
        return False

    def _is_duplicate(self, lane: Lane, fetched: Fetched) -> bool:
        if not (fetched.seen or self._remembered.knows(fetched)):
            return False
        held = self._held
        held.metrics.duplicates += 1
        if held.core.claims is not None:
            held.core.claims.note_duplicate(fetched)
        if held.notes is not None:
            held.notes.note("duplicate", fetched, "stored twice and handled before: dropped")
        fetched.seen = True
        self._outcomes.done(lane)
        return True

    async def _is_there(self, fetched: Fetched) -> bool:
        """Not only in an answer that was on its way here while it was settled."""
        held = self._held
        if held.shards is None:
            return True  # leased anew
        return bool(await held.consumer.refetch(fetched.shard, [fetched.at]))

    def _is_expired(self, lane: Lane, fetched: Fetched) -> bool:
        ttl_s = fetched.record.ttl_s
        if ttl_s is None or self._held.core.backend.now() - fetched.stored_at <= ttl_s:
            return False
        self._held.metrics.expired += 1
        self._refuse(lane, "expired", f"its time to live of {ttl_s} s ran out")
        return True

    async def _opened(self, fetched: Fetched) -> Message:
        if not fetched.record.body.startswith(MARK):
            return message_of(fetched.record)
        claims = self._held.core.claims
        if claims is None:
            raise BackendError(
                f"read {fetched.record.id} of {self._held.queue}: its content lies in a blob store, and the setting "
                "blobs names none here; set it as its sender has it"
            )
        return await claims.opened(fetched)

    def _refuse(self, lane: Lane, reason: str, error: str) -> None:
        """A dead letter without a start: a mark that was stored ahead is taken back. Not by who was frozen: what it
        sees now is what became of the message elsewhere."""
        if not self._held.holds(lane):
            return
        not_started(lane.waiting[0])
        self._outcomes.dead(lane, reason, error)

    async def mark(self, fetched: Fetched) -> bool:
        """Store the running mark before the start; False: the lease is lost."""
        fetched.starts += 1
        fetched.marked = True
        try:
            refused = await self._held.mark([fetched])
        except BaseException:
            fetched.starts -= 1
            fetched.marked = False
            raise
        return not refused
