"""A simulated store that behaves like Kafka: logs, a consumer group, and commits of a watermark."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from random import Random
from typing import ClassVar, Final

import msgspec

from hivewire.backend import (
    Again,
    Dead,
    Depth,
    Features,
    Fetched,
    Member,
    Ownership,
    Record,
    Returned,
    Saved,
    Unfinished,
)
from hivewire.errors import BackendError, ConnectionLost
from hivewire.record import names
from hivewire.rules.finished import Finished
from hivewire.rules.moved import before_this_start, returned_of, taken_over
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Heard, Kept, Offer, Take, Word
from hivewire.testing.profiles_driver import ProfileBackend
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.profiles_shards import HANDOVER_S, ShardConsumer, ShardWorld, Shares

METADATA_BYTES: Final = 3_500
"""What a commit can carry beside the watermark."""
GRACE_S: Final = 0.01
"""So long a shard that must move waits for handlers; some last longer, and run on."""


class Log(msgspec.Struct):
    """One partition: records by offset, those below the watermark removed."""

    records: dict[int, tuple[Record, float]] = {}
    end: int = 0
    settled: list[Hashable] = []
    """The lives of what was removed, as a broker keeps the newest records below the watermark."""


class KafkaWorld(ShardWorld):
    """The broker. It knows of each partition how far the group has committed, and nothing of records."""

    features: ClassVar[Features] = Features(
        durability="disk",
        store_lanes=False,
        per_record_ack=False,
        delayed_append=False,
        store_dedup=False,
        remembers_settled=False,
        finds_expired=False,
    )

    def __init__(self, faults: Faults, chance: Random) -> None:
        super().__init__(faults, chance)
        self._topics: dict[str, list[Log]] = {}
        self._pools: dict[str, Pool] = {}
        """Of each queue, who runs what of shards that have moved."""

    # What runs at former owners

    def pool(self, queue: str) -> Pool:
        return self._pools.setdefault(queue, Pool(1_000, 600.0, 3_600.0))

    def say(self, queue: str, word: Word) -> Heard:
        heard = self.pool(queue).apply(word, self.next_number(), self.now())
        if word.done or heard.freed:
            self.ring(_members(queue))
        return heard

    def beat(self, queue: str, process: str, lease_s: float, *, begins: bool) -> Shares:
        shares = super().beat(queue, process, lease_s, begins=begins)
        if process in self.pool(queue).members:
            self.say(queue, Word(process))
        return shares

    def _bury(self, queue: str, process: str) -> None:
        super()._bury(queue, process)
        seat = self.pool(queue).members.get(process)
        if seat is None:
            return
        if self.now() - seat.heard_at >= seat.lease_s:
            self.say(queue, Word("", silent=(process, seat.last)))
        else:
            self.say(queue, Word(process, leaves=True))

    def leave(self, queue: str, process: str) -> None:
        super().leave(queue, process)
        self.say(queue, Word(process, leaves=True))

    def hold(self, queue: str, process: str, lease_s: float, batch: Sequence[Fetched]) -> bool:
        """The member runs these on. False: somebody else does."""
        offers = [Offer(*_at(fetched), self.next_number(), 0, before_this_start(fetched)) for fetched in batch]
        self.say(queue, Word(process, lease_s, take=Take(len(offers), len(offers), offers, runs=True)))
        pool, places = self.pool(queue), [(offer.shard, offer.offset) for offer in offers]
        return all(pool.is_held(at, process) or pool.is_finished(at) for at in places)

    def settle_held(
        self, queue: str, process: str, done: Sequence[Fetched], rest: Sequence[Unfinished], finished: Finished
    ) -> list[Fetched]:
        """`finished`: what the member knows of its words from the log, whether it had an answer or not."""
        ended = list(done)
        back: list[Kept] = []
        for unfinished in rest:
            fetched = unfinished.fetched
            if isinstance(unfinished, Dead):
                ended.append(fetched)
                if self.pool(queue).is_held(_at(fetched), process):
                    self.bury(queue, fetched.record, unfinished.letter)
            else:
                due_at = self.now() + unfinished.delay_s if isinstance(unfinished, Again) else 0.0
                back.append(Kept(*_at(fetched), fetched.starts, fetched.failures, fetched.crashes, due_at))
        word = Word(process, done=[_at(fetched) for fetched in ended], back=back)
        heard = self.say(queue, word)
        finished.heard(word, heard)
        refused = finished.still(heard.refused)
        return [f for f in (*done, *(unfinished.fetched for unfinished in rest)) if _at(f) in refused]

    def _topic(self, queue: str) -> list[Log]:
        topic = self._topics.get(queue)
        if topic is None:
            topic = self._topics[queue] = [Log() for _ in range(self.specs[queue].shards)]
        return topic

    def store(self, queue: str, record: Record, delay_s: float) -> None:
        log = self._topic(queue)[self.shard_of(queue, self.lane_of(queue, record))]
        log.records[log.end] = (record, self.now())
        log.end += 1

    def released(self, queue: str, number: int) -> None:
        """The group is told at once. The committed watermark and state, and who runs what, are all that the next
        owner gets."""
        self.ring(_members(queue))

    def inherited(self, queue: str, number: int) -> None:
        """The committed watermark and state are all that the next owner gets."""

    def save(self, queue: str, process: str, number: int, token: int, saved: Saved) -> bool:
        size = len(saved.state)
        if size > METADATA_BYTES:
            raise BackendError(f"commit of {queue} {number}: {size} bytes of metadata, {METADATA_BYTES} allowed")
        return super().save(queue, process, number, token, saved)

    def committed(self, queue: str, process: str, number: int, watermark: int) -> None:
        shard, log = self.group(queue).shards[number], self._topic(queue)[number]
        for offset in range(shard.watermark, min(watermark, log.end)):
            if offset in log.records:  # else an older commit had set the watermark back
                record, _ = log.records.pop(offset)
                log.settled.extend(names(record))
                self.note("settled", queue, record, process)
        shard.watermark = watermark

    def settled_lately(self, queue: str, number: int) -> Sequence[Hashable]:
        return tuple(self._topic(queue)[number].settled)

    def newest(self, queue: str, number: int) -> int:
        return self._topic(queue)[number].end - 1

    def read(self, queue: str, number: int, token: int, after: int, limit: int, lanes: int, run: int) -> list[Fetched]:
        log = self._topic(queue)[number]
        found: list[Fetched] = []
        keys: dict[str, int] = {}
        for offset in range(after + 1, log.end):
            if offset not in log.records:
                continue  # deleted below the watermark
            key = log.records[offset][0].key
            keys[key] = keys.get(key, 0) + 1
            if len(found) >= limit or len(keys) > lanes or keys[key] > run:
                break  # a log is read in order
            found.append(self._hand_out(log, number, token, offset))
        return found

    def _hand_out(self, log: Log, number: int, token: int, offset: int) -> Fetched:
        record, stored_at = log.records[offset]
        return Fetched(shard=number, at=offset, token=token, record=record, stored_at=stored_at)

    def again(self, queue: str, positions: Iterable[tuple[int, int, int]]) -> list[Fetched]:
        topic = self._topic(queue)
        return [
            self._hand_out(topic[number], number, token, offset)
            for number, token, offset in positions
            if offset in topic[number].records
        ]

    def start(self, queue: str, process: str, batch: Sequence[Fetched]) -> list[Fetched]:
        return self._fenced_out(queue, process, batch)

    def settle(self, queue: str, process: str, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> list[Fetched]:
        """Only dead letters are written here; that a record is finished is said by the next commit."""
        refused = self._fenced_out(queue, process, [*done, *(unfinished.fetched for unfinished in rest)])
        for unfinished in rest:
            if isinstance(unfinished, Dead):  # a produce is not fenced: a stale owner can write one more
                self.bury(queue, unfinished.fetched.record, unfinished.letter)
        for fetched in refused:
            self.note("refused", queue, fetched.record, process)
        return refused

    def _fenced_out(self, queue: str, process: str, batch: Sequence[Fetched]) -> list[Fetched]:
        return [fetched for fetched in batch if self.is_fenced_out(queue, process, fetched.shard, fetched.token)]

    def held(self, queue: str) -> int:
        return sum(len(log.records) for log in self._topic(queue))

    def depth(self, queue: str) -> Depth:
        kept = [entry for log in self._topic(queue) for entry in log.records.values()]
        return Depth(
            ready=len(kept),
            dead=sum(dead.queue == queue for dead in self.letters),
            oldest_age_s=self.now() - min((stored_at for _, stored_at in kept), default=self.now()),
        )

    def forget(self, queue: str) -> None:
        super().forget(queue)
        self._topics.pop(queue, None)
        self._pools.pop(queue, None)


class KafkaBackend(ProfileBackend[KafkaWorld]):
    """A connection to the broker."""

    def _consumer(self, queue: str, member: Member, owner: Ownership) -> ShardConsumer[KafkaWorld]:
        return MovingConsumer(self, queue, member, owner)


class MovingConsumer(ShardConsumer[KafkaWorld]):
    """A member that gives shards up while their handlers run on."""

    def __init__(self, backend: ProfileBackend[KafkaWorld], queue: str, member: Member, owner: Ownership) -> None:
        super().__init__(backend, queue, member, owner)
        self._finished = Finished()
        self._watched: dict[int, tuple[int, set[int]]] = {}
        """Of each shard, the token, and what runs at others."""

    async def _come_to_rest(self, shards: set[int]) -> Mapping[int, Saved]:
        if not self.is_closed:
            try:
                return await self.owner.hand_over(shards, GRACE_S)
            except BackendError:
                pass  # it cannot be said who runs what: then nothing may
        return await self.owner.losing(shards, HANDOVER_S)

    async def hold(self, batch: Sequence[Fetched]) -> None:
        is_said = await self.wire.call(
            ("release",), lambda: self.world.hold(self.queue, self.name, self.member.lease_s, batch)
        )
        if not is_said:
            raise ConnectionLost(f"give up shards of {self.queue}: somebody else holds what runs here")

    async def settle_held(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        return await self.wire.call(
            ("save",),
            lambda: self.world.settle_held(self.queue, self.name, done, rest, self._finished),
            weight=len(done) + len(rest),
        )

    async def _gain(self, number: int, token: int, saved: bytes, watermark: int) -> None:
        state, held = taken_over(self.world.pool(self.queue), number, watermark, saved)
        await super()._gain(number, token, state, watermark)
        if held:
            self.owner.expect(number, held)
            self._watched[number] = token, set(held)

    async def _pause(self, seconds: float) -> None:
        await self.world.bells.wait(_members(self.queue), self.world.loop.time() + seconds)

    async def _tick(self) -> None:
        await super()._tick()
        for number, (token, positions) in list(self._watched.items()):
            if self._tokens.get(number) != token:
                del self._watched[number]
                continue
            back = await self.wire.call((), lambda number=number, positions=positions: self._ended(number, positions))  # type: ignore[misc]
            for at, what in back.items():
                positions.discard(at)
                self.owner.returned(number, token, at, what)

    def _ended(self, number: int, positions: set[int]) -> dict[int, Returned | None]:
        pool = self.world.pool(self.queue)
        return {at: returned_of(pool, (number, at)) for at in sorted(positions) if not pool.is_taken((number, at))}

    def _give_up(self) -> None:
        super()._give_up()
        self.owner.lost_held()


def _members(queue: str) -> str:
    """The bell of a queue's group."""
    return f"members of {queue}"


def _at(fetched: Fetched) -> At:
    return fetched.shard, int(fetched.at)
