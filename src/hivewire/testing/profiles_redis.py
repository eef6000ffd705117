"""A simulated store that behaves like Redis streams with leased shards: each record is acknowledged alone."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from random import Random
from typing import ClassVar

import msgspec

from hivewire.backend import Again, Dead, Depth, Features, Fetched, Member, Ownership, Record, Unfinished
from hivewire.testing.profiles_driver import ProfileBackend
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.profiles_shards import ShardConsumer, ShardWorld
from hivewire.testing.profiles_world import SETTLED_WINDOW_S


class StreamEntry(msgspec.Struct, gc=False):
    """One record in a shard's stream."""

    record: Record
    stored_at: float
    starts: int = 0
    failures: int = 0
    crashes: int = 0
    died: int = 0
    is_running: bool = False
    is_suspect: bool = False


class Streams(msgspec.Struct):
    """One queue: a stream for each shard, and what is not due yet."""

    shards: list[dict[int, StreamEntry]]
    scheduled: list[tuple[float, int, Record, float]] = []
    settled: dict[tuple[str, int], float] = {}


class RedisWorld(ShardWorld):
    """The server. A reader takes nothing out of a stream; only a fenced acknowledgement does."""

    features: ClassVar[Features] = Features(durability="process", store_lanes=False)

    def __init__(self, faults: Faults, chance: Random) -> None:
        super().__init__(faults, chance)
        self._streams: dict[str, Streams] = {}

    def _queue(self, queue: str) -> Streams:
        streams = self._streams.get(queue)
        if streams is None:
            streams = self._streams[queue] = Streams([{} for _ in range(self.specs[queue].shards)])
        return streams

    def store(self, queue: str, record: Record, delay_s: float) -> None:
        if delay_s > 0:
            entry = (self.now() + delay_s, self.next_number(), record, self.now())
            heapq.heappush(self._queue(queue).scheduled, entry)
        else:
            self._add(queue, record, self.now())

    def _add(self, queue: str, record: Record, stored_at: float) -> None:
        shard = self._queue(queue).shards[self.shard_of(queue, self.lane_of(queue, record))]
        shard[self.next_number()] = StreamEntry(record, stored_at)

    def _mature(self, queue: str) -> None:
        scheduled = self._queue(queue).scheduled
        while scheduled and scheduled[0][0] <= self.now():
            _, _, record, stored_at = heapq.heappop(scheduled)
            self._add(queue, record, stored_at)

    def released(self, queue: str, number: int) -> None:
        for entry in self._queue(queue).shards[number].values():
            entry.is_running = False

    def inherited(self, queue: str, number: int) -> None:
        entries = self._queue(queue).shards[number].values()
        marked = sum(entry.is_running for entry in entries)
        for entry in entries:
            # The server cannot tell what was read, so everything here may have been.
            entry.is_suspect = True
            if entry.is_running:
                entry.died = marked
                entry.is_running = False

    def committed(self, queue: str, process: str, number: int, watermark: int) -> None:
        """Each record is acknowledged alone here; a watermark says nothing more."""

    def newest(self, queue: str, number: int) -> int:
        self._mature(queue)
        return next(reversed(self._queue(queue).shards[number]), -1)

    def read(self, queue: str, number: int, token: int, after: int, limit: int, lanes: int, run: int) -> list[Fetched]:
        self._mature(queue)
        found: list[Fetched] = []
        keys: dict[str, int] = {}
        for at, entry in self._queue(queue).shards[number].items():
            if at <= after:
                continue
            key = entry.record.key
            keys[key] = keys.get(key, 0) + 1
            if len(found) >= limit or len(keys) > lanes or keys[key] > run:
                break  # a cursor cannot leave one out
            found.append(self._hand_out(queue, number, token, at, entry))
        return found

    def _hand_out(self, queue: str, number: int, token: int, at: int, entry: StreamEntry) -> Fetched:
        life = (entry.record.id, entry.record.replay)
        return Fetched(
            shard=number,
            at=at,
            token=token,
            record=entry.record,
            stored_at=entry.stored_at,
            starts=entry.starts,
            failures=entry.failures,
            crashes=entry.crashes,
            died=entry.died,
            suspect=entry.is_suspect,
            seen=self._queue(queue).settled.get(life, -SETTLED_WINDOW_S) + SETTLED_WINDOW_S > self.now(),
        )

    def again(self, queue: str, positions: Iterable[tuple[int, int, int]]) -> list[Fetched]:
        shards = self._queue(queue).shards
        return [
            self._hand_out(queue, number, token, at, shards[number][at])
            for number, token, at in positions
            if at in shards[number]
        ]

    def start(self, queue: str, process: str, batch: Sequence[Fetched]) -> list[Fetched]:
        refused = []
        for fetched in batch:
            if self.is_fenced_out(queue, process, fetched.shard, fetched.token):
                refused.append(fetched)
                continue
            entry = self._entry(queue, fetched)
            if entry is not None:
                _copy_counters(fetched, entry)
                entry.is_running = True
                self.note("marked", queue, entry.record, process)
        return refused

    def _entry(self, queue: str, fetched: Fetched) -> StreamEntry | None:
        assert isinstance(fetched.at, int)
        return self._queue(queue).shards[fetched.shard].get(fetched.at)

    def settle(self, queue: str, process: str, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> list[Fetched]:
        refused = []
        for fetched in done:
            if self.is_fenced_out(queue, process, fetched.shard, fetched.token):
                refused.append(fetched)
            elif self._entry(queue, fetched) is not None:
                self.note("settled", queue, fetched.record, process)
                self._remove(queue, fetched)
        for unfinished in rest:
            fetched = unfinished.fetched
            if self.is_fenced_out(queue, process, fetched.shard, fetched.token):
                refused.append(fetched)
            elif (entry := self._entry(queue, fetched)) is not None:
                if isinstance(unfinished, Dead):
                    self.bury(queue, entry.record, unfinished.letter)
                    self._remove(queue, fetched)
                else:
                    _copy_counters(fetched, entry)
                    entry.is_running = False
                    entry.is_suspect = entry.is_suspect and not isinstance(unfinished, Again)
        for fetched in refused:
            self.note("refused", queue, fetched.record, process)
        return refused

    def _remove(self, queue: str, fetched: Fetched) -> None:
        streams = self._queue(queue)
        assert isinstance(fetched.at, int)
        streams.settled[fetched.record.id, fetched.record.replay] = self.now()
        del streams.shards[fetched.shard][fetched.at]

    def next_due(self, queue: str) -> float | None:
        due = super().next_due(queue)
        scheduled = self._queue(queue).scheduled
        if scheduled and scheduled[0][0] > self.now():
            return scheduled[0][0] if due is None else min(due, scheduled[0][0])
        return due

    def held(self, queue: str) -> int:
        self._mature(queue)
        streams = self._queue(queue)
        return sum(map(len, streams.shards)) + len(streams.scheduled)

    def depth(self, queue: str) -> Depth:
        self._mature(queue)
        streams = self._queue(queue)
        entries = [entry for shard in streams.shards for entry in shard.values()]
        running = sum(entry.is_running for entry in entries)
        return Depth(
            ready=len(entries) - running,
            in_flight=running,
            scheduled=len(streams.scheduled),
            dead=sum(dead.queue == queue for dead in self.letters),
            oldest_age_s=self.now() - min((entry.stored_at for entry in entries), default=self.now()),
        )

    def bury_expired(self) -> int:
        buried = 0
        for queue, streams in self._streams.items():
            if self.group(queue).members:
                continue  # its owners find what expires
            self._mature(queue)
            for shard in streams.shards:
                for at, entry in list(shard.items()):
                    ttl = entry.record.ttl_s
                    if ttl is not None and entry.stored_at + ttl <= self.now():
                        self.bury(queue, entry.record, self.expiry_letter(entry.stored_at))
                        del shard[at]
                        buried += 1
        return buried

    def forget(self, queue: str) -> None:
        super().forget(queue)
        self._streams.pop(queue, None)


def _copy_counters(fetched: Fetched, entry: StreamEntry) -> None:
    entry.starts, entry.failures, entry.crashes = fetched.starts, fetched.failures, fetched.crashes
    entry.died = fetched.died


class RedisBackend(ProfileBackend[RedisWorld]):
    """A connection to the server."""

    def _consumer(self, queue: str, member: Member, owner: Ownership) -> ShardConsumer[RedisWorld]:
        return ShardConsumer(self, queue, member, owner)
