"""What the simulated stores have in common: the server that members connect to, and the driver's plain calls."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from random import Random
from typing import ClassVar, Final
from zlib import crc32

import msgspec

from hivewire.backend import (
    Append,
    DeadRecord,
    Depth,
    Duplicate,
    Entry,
    Features,
    Letter,
    QueueSpec,
    Record,
    Room,
)
from hivewire.errors import QueueFull, QueueMissing, Unsupported
from hivewire.record import lane_of
from hivewire.testing.profiles_bells import Bells
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.virtual_loop import EPOCH, VirtualLoop

SETTLED_WINDOW_S: Final = 600.0


class Happening(msgspec.Struct, frozen=True):
    """Something that the store did, for the checks after a run."""

    at: float
    what: str
    """`stored`, `marked`, `settled`, `dead`, `refused` or `usurped`."""
    queue: str
    id: str
    replay: int = 0
    process: str = ""
    detail: str = ""


class World(ABC):
    """The server. Each method is one step that nothing can interrupt; time is the loop's."""

    features: ClassVar[Features]

    def __init__(self, faults: Faults, chance: Random) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.faults = faults
        self.chance = chance
        self.specs: dict[str, QueueSpec] = {}
        self.letters: list[DeadRecord] = []
        self.purged: list[DeadRecord] = []
        """Dead letters that somebody threw away."""
        self.blobs: dict[str, bytes] = {}
        self.history: list[Happening] = []
        self._values: dict[str, tuple[Entry, float | None]] = {}
        self._idempotent: dict[tuple[str, str], tuple[str, float]] = {}
        self.bells = Bells(loop, self._falls_due)
        self._heard: dict[tuple[str, str], list[bytes]] = {}
        self.epoch = 0
        self._cursor = 0
        self._numbers = 0

    def now(self) -> float:
        return EPOCH + self.loop.time()

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def note(self, what: str, queue: str, record: Record, process: str = "", detail: str = "") -> None:
        self.history.append(Happening(self.loop.time(), what, queue, record.id, record.replay, process, detail))

    def ring(self, queue: str) -> None:
        """Something happened to the queue."""
        self.bells.ring(queue)

    def _falls_due(self, queue: str) -> float | None:
        """`next_due` by the loop's time."""
        due = self.next_due(queue) if queue in self.specs else None
        return None if due is None else due - EPOCH

    # Queues

    @abstractmethod
    def store(self, queue: str, record: Record, delay_s: float) -> None:
        """Put one record into the queue."""

    @abstractmethod
    def next_due(self, queue: str) -> float | None:
        """When something may become ready although nobody does anything, by the store's clock."""

    @abstractmethod
    def depth(self, queue: str) -> Depth: ...

    @abstractmethod
    def held(self, queue: str) -> int:
        """How many messages are there, whatever state they are in: the sum of those of `depth`."""

    @abstractmethod
    def owns(self, process: str, queue: str, key: str) -> bool:
        """True while this process may start handlers for the key."""

    def move_some(self, process: str) -> None:  # noqa: B027 - only where shards have owners
        """Ask the member to give up some of what it owns."""

    @abstractmethod
    def forget(self, queue: str) -> None:
        """Drop what the queue holds."""

    def declare(self, spec: QueueSpec) -> QueueSpec:
        present = self.specs.get(spec.name)
        if present is None:
            present = self.specs[spec.name] = spec
        elif present.mode is None and spec.mode is not None:
            present = self.specs[spec.name] = msgspec.structs.replace(present, mode=spec.mode)
        return present

    def lane_of(self, queue: str, record: Record) -> str:
        return lane_of(record, competing=self.specs[queue].mode == "competing")

    def shard_of(self, queue: str, key: str) -> int:
        return crc32(key.encode("utf-8", "surrogatepass")) % self.specs[queue].shards

    def append(self, batch: Sequence[Append]) -> dict[int, Duplicate | Exception]:
        refused: dict[int, Duplicate | Exception] = {}
        number = 0
        for part in batch:
            answer = self._refusal(part)
            for record in part.records:
                if answer is not None:
                    refused[number] = answer
                else:
                    self.note("stored", part.queue, record, detail=f"{part.delay_s:g}")
                    self.store(part.queue, record, part.delay_s)
                number += 1
            if answer is None:
                self.ring(part.queue)
        return refused

    def _refusal(self, part: Append) -> Duplicate | Exception | None:
        if part.queue.startswith("~reply/") and part.queue not in self.specs:
            return QueueMissing(f"nobody waits for replies at {part.queue}")
        spec = self.declare(QueueSpec(name=part.queue))
        if part.delay_s > 0 and not self.features.delayed_append:
            return Unsupported(f"append to {part.queue}: this store has no delayed messages")
        if part.idempotency_key is not None and self.features.store_dedup:
            key = (part.queue, part.idempotency_key)
            first, until = self._idempotent.get(key, ("", 0.0))
            if self.now() < until:
                return Duplicate(first)
        held = self.held(part.queue) + len(part.records)
        reserve = max(100, spec.cap // 10) if part.room is Room.RESERVE else 0
        if part.room is not Room.ALWAYS and held > spec.cap + reserve:
            return QueueFull(f"append to {part.queue}: it holds {spec.cap} messages")
        if part.idempotency_key is not None and self.features.store_dedup:
            self._idempotent[key] = (part.records[0].id, self.now() + part.window_s)
        return None

    def drop_queue(self, queue: str) -> None:
        self.forget(queue)
        self.specs.pop(queue, None)

    # Dead letters

    def bury(self, queue: str, record: Record, letter: Letter) -> None:
        self._cursor += 1
        self.note("dead", queue, record, detail=letter.reason)
        self.letters.append(
            DeadRecord(cursor=f"{self._cursor:012}", queue=queue, record=record, letter=letter, dead_at=self.now())
        )

    def dead(self, queue: str | None, limit: int, after: str | None) -> list[DeadRecord]:
        found = [dead for dead in self.letters if queue in (None, dead.queue) and dead.cursor > (after or "")]
        return found[:limit]

    def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        chosen = self._take_letters(lambda dead: queue in (None, dead.queue) and (ids is None or dead.record.id in ids))
        for dead in chosen:
            self.store(dead.queue, msgspec.structs.replace(dead.record, replay=dead.record.replay + 1), 0.0)
            self.ring(dead.queue)
        return len(chosen)

    def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        before = self.now() - (older_than_s or 0.0)
        chosen = self._take_letters(
            lambda dead: (
                queue in (None, dead.queue) and (ids is None or dead.record.id in ids) and dead.dead_at <= before
            )
        )
        self.purged += chosen
        return len(chosen)

    def _take_letters(self, wanted: Callable[[DeadRecord], bool]) -> list[DeadRecord]:
        chosen = [dead for dead in self.letters if wanted(dead)]
        self.letters = [dead for dead in self.letters if not wanted(dead)]
        return chosen

    def bury_expired(self) -> int:
        return 0

    def cleanup(self, older_than_s: float | None) -> int:
        before = self.now() - (older_than_s or 0.0)
        old = [key for key, (_, until) in self._idempotent.items() if until < before]
        for key in old:
            del self._idempotent[key]
        return len(old)

    def expiry_letter(self, stored_at: float) -> Letter:
        return Letter(reason="expired", error="", attempts=0, first_at=stored_at, worker="store")

    # The catalogue

    def get(self, key: str) -> Entry:
        entry, until = self._values.get(key, (Entry(b"", 0), None))
        return Entry(b"", 0) if until is not None and until <= self.now() else entry

    def put(self, key: str, value: bytes, version: int, ttl_s: float | None) -> Entry | None:
        if self.get(key).version != version:
            return None
        entry = Entry(value, self.next_number())
        self._values[key] = (entry, None if ttl_s is None else self.now() + ttl_s)
        if key.startswith(("agent/", "group/")):
            self.epoch += 1
        return entry

    def scan(self, prefix: str) -> dict[str, Entry]:
        found = {key: self.get(key) for key in sorted(self._values) if key.startswith(prefix)}
        return {key: entry for key, entry in found.items() if entry.version}

    # Volatile channels

    def publish(self, channel: str, body: bytes) -> None:
        for (_, name), heard in self._heard.items():
            if name == channel:
                heard.append(body)
        self.ring(channel_bell(channel))

    def hear(self, process: str, channel: str) -> list[bytes]:
        heard = self._heard.setdefault((process, channel), [])
        taken = heard[:]
        heard.clear()
        return taken


def channel_bell(channel: str) -> str:
    """The bell of a volatile channel."""
    return f"channel {channel}"
