"""A simulated store that behaves like Kafka: logs, a consumer group, and commits of a watermark."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import ClassVar, Final

import msgspec

from hivewire.backend import Dead, Depth, Features, Fetched, Member, Ownership, Record, Saved, Unfinished
from hivewire.errors import BackendError
from hivewire.record import names
from hivewire.testing.profiles_driver import ProfileBackend
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.profiles_shards import ShardConsumer, ShardWorld

METADATA_BYTES: Final = 3_500
"""What a commit can carry beside the watermark."""


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
        """The committed watermark and state are all that the next owner gets."""

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


class KafkaBackend(ProfileBackend[KafkaWorld]):
    """A connection to the broker."""

    def _consumer(self, queue: str, member: Member, owner: Ownership) -> ShardConsumer[KafkaWorld]:
        return ShardConsumer(self, queue, member, owner)
