"""Messages for later: a compacted topic, from which the owner of a shard moves what is due for it.

Who moves a message says so in the topic first, and who cancels one says that there: the first of them has it
(`rules/later.py`, ADR 24).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import uuid4
from zlib import crc32

import msgspec

from hivewire.backends.kafka.catalogue import DELAYED, Follower
from hivewire.backends.kafka.names import key_bytes
from hivewire.backends.kafka.packing import KafkaMessage, headers_of, stored_at
from hivewire.backends.kafka.sending import Item
from hivewire.errors import BackendError
from hivewire.record import Record
from hivewire.rules.backoff import Backoff
from hivewire.rules.later import Agenda, Later

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.2
_LONGEST_RETRY_S: Final = 2.0
_AT_ONCE: Final = 500
_MOST_CANCELLED: Final = 5_000
"""In one record."""
_OVER_S: Final = 1e-6
_STALE_S: Final = 30.0
"""Who has decided something and not cleared it away by then is dead."""
_CLAIM: Final = "~claim/"
_CANCEL: Final = "~cancel/"
"""Before the name of a queue in what is decided. Versions before this one take it for a queue that nobody has."""
_KEPT: Final = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "min.compaction.lag.ms": "600000",
    "segment.ms": "3600000",
    "segment.bytes": "67108864",
}
"""What was moved or cancelled is gone some hours later, and not before who stood still for a while has read it."""


class _Later(msgspec.Struct, array_like=True, gc=False):
    """A message, or with one of the above before the queue what is decided: its body is offsets of messages."""

    due_at: float
    queue: str
    id: str
    key: str
    type: str
    sender: str
    ttl_s: float | None
    priority: int
    replay: int
    dedup_key: str | None
    body: bytes


class _Decided(NamedTuple):
    """`won`: the messages that it took, if it cancels."""

    name: bytes
    won: Sequence[int]


_read = msgspec.msgpack.Decoder(_Later).decode
_read_ats = msgspec.msgpack.Decoder(list[int]).decode
_write = msgspec.msgpack.Encoder().encode


class Waiting:
    """What waits for one queue."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.changed = asyncio.Event()


class Delays:
    """Those of all queues that this process has to do with."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._topic = backend.names.delayed
        self._waiting: dict[str, Waiting] = {}
        self._logs: dict[int, Follower] = {}
        self._first: dict[str, asyncio.Event] = {}
        """For those who wait until anything is delayed for a queue."""
        self._asked: dict[bytes, Sequence[int]] = {}
        """What this process is about to decide, and what has come of it."""

    def begun(self, queue: str) -> None:
        """The catalogue says that something was delayed for the queue."""
        first = self._first.get(queue)
        if first is not None:
            first.set()

    async def _place(self, queue: str) -> int:
        """The partition in which all is said of the queue."""
        partitions = self._backend.settings.kafka.num_partitions
        return crc32(queue.encode()) % await self._backend.topics.ensure_own(self._topic, partitions, _KEPT)

    async def store(self, queue: str, records: Sequence[Record], due_at: float) -> None:
        """Returns when they are stored. One that is sent again takes the place of the first."""
        place = await self._place(queue)
        items = []
        for record in records:
            later = _Later(
                due_at,
                queue,
                record.id,
                record.key,
                record.type,
                record.sender,
                record.ttl_s,
                record.priority,
                record.replay,
                record.dedup_key,
                record.body,
            )
            items.append(self._item(place, _name(queue), later))
        await self._backend.store_all(items)
        if not self._backend.catalogue.known(DELAYED + queue).version:
            await self._backend.catalogue.put(DELAYED + queue, b"1", 0)

    def _item(self, place: int, name: bytes, later: _Later | None) -> Item:
        return Item(self._topic, None, 0, place, name, None if later is None else _write(later), None)

    async def _remove(self, place: int, names: Sequence[bytes]) -> None:
        """In this order: see `rules/later.py`."""
        await self._backend.store_all([self._item(place, name, None) for name in names])

    def exist(self, queue: str) -> bool:
        """Whether anything was ever delayed for the queue, as far as is known here."""
        return self._backend.catalogue.known(DELAYED + queue).version > 0

    async def waiting(self, queue: str) -> Waiting | None:
        """Up to date as of now; None: nothing was ever delayed."""
        if not self.exist(queue):
            return None
        waiting = self._waiting.setdefault(queue, Waiting())
        partition = await self._place(queue)
        log = self._logs.get(partition)
        if log is None:
            log = self._logs[partition] = Follower(self._backend, self._topic, partition, self._take)
        await log.catch_up()
        return waiting

    def _take(self, message: KafkaMessage) -> None:
        name = message.key() or b""
        value = message.value()
        if value is None:
            for waiting in self._waiting.values():
                waiting.agenda.removed(name)
            return
        later, at = _read(value), message.offset()
        kind, _, queue = later.queue.partition("/")
        if kind + "/" not in (_CLAIM, _CANCEL):
            waiting = self._waiting.setdefault(later.queue, Waiting())
            life, spread = (later.id, later.replay), crc32(key_bytes(later.key))
            waiting.agenda.stored(Later(at, name, life, later.due_at, spread))
            waiting.changed.set()
            return
        agenda = self._waiting.setdefault(queue, Waiting()).agenda
        if kind + "/" == _CLAIM:
            agenda.claimed(name, _read_ats(later.body), stored_at(message))
            return
        won = agenda.cancelled(name, _read_ats(later.body), stored_at(message))
        if name in self._asked:
            self._asked[name] = won

    # -- deciding

    async def _decide(self, kind: str, queue: str, place: int, ats: Sequence[int]) -> _Decided:
        """Returns when it has its place in the log and was read there."""
        name = _name(kind + queue)
        decision = _Later(0.0, kind + queue, "", "", "", "", None, 0, 0, None, _write(ats))
        item = self._item(place, name, decision)
        self._asked[name] = ()
        try:
            await self._logs[place].until(await self._backend.store_one(item) + 1)
        finally:
            won = self._asked.pop(name)
        return _Decided(name, won)

    async def withdraw(self, queue: str, ats: Sequence[int]) -> set[int]:
        """Cancel what waits at these offsets; returns those that were there."""
        waiting = await self.waiting(queue)
        if waiting is None:
            return set()
        place = await self._place(queue)
        gone: set[int] = set()
        wanted = [at for at in ats if waiting.agenda.is_to_come(at, self._backend.now())]
        for first in range(0, len(wanted), _MOST_CANCELLED):
            decided = await self._decide(_CANCEL, queue, place, wanted[first : first + _MOST_CANCELLED])
            gone.update(decided.won)
            try:
                await self._remove(place, waiting.agenda.names_by(decided.name))
            except BackendError as error:
                log.info("what was cancelled is cleared away later", extra={"queue": queue, "error": str(error)})
        return gone

    async def drop(self, queue: str) -> None:
        """All that waits for a queue that nobody consumes."""
        waiting = await self.waiting(queue)
        if waiting is not None:
            names = waiting.agenda.names_of(list(waiting.agenda.known.values()))
            await self._remove(await self._place(queue), names)

    async def read(self, queue: str, offsets: Sequence[int]) -> dict[int, tuple[Record, float]]:
        """Those of these that are still there, with the time of their storing."""
        if not offsets:
            return {}
        partition = await self._place(queue)
        messages = await self._backend.reader.read(
            self._topic, partition, min(offsets), max(offsets), frozenset(offsets)
        )
        return {message.offset(): (_record(message), stored_at(message)) for message in messages if message.value()}

    # -- moving

    async def move(self, queue: str, waiting: Waiting, owned: set[int]) -> float | None:
        """Move what is due for the owned shards into the queue; when to come again, if that is known."""
        agenda, place = waiting.agenda, await self._place(queue)
        stale = agenda.stale(self._backend.now() - _STALE_S)
        if stale:
            await self._remove(place, stale)
        shards = await self._backend.topics.ensure(queue)
        due, at = agenda.due(self._backend.now(), owned, shards, _AT_ONCE)
        free = [later.at for later in due if later.claim is None]
        if free:
            await self._decide(_CLAIM, queue, place, free)
        # What was claimed by somebody who is dead by now is moved, too.
        claimed = [later for later in due if later.claim is not None and later.at in agenda.known]
        if claimed:
            await self._move(queue, claimed, shards)
            await self._remove(place, agenda.names_of(claimed))
        return at

    async def _move(self, queue: str, due: Sequence[Later], shards: int) -> None:
        """In the order they fall due. They are removed after that: a crash in between stores one twice, and it is
        recognised by its id."""
        found = await self.read(queue, [later.at for later in due])
        now = self._backend.now()
        topic = self._backend.names.topic(queue)
        items = []
        for later in due:
            if later.at not in found:
                continue  # another owner was faster
            record, at = found[later.at]
            if record.ttl_s is not None:
                # Its time runs from when it was sent; what is over by now expires with its first reader.
                record.ttl_s = max(_OVER_S, record.ttl_s - (now - at))
            key, headers = key_bytes(record.key), headers_of(queue, record)
            items.append(Item(topic, record.id, record.replay, later.spread % shards, key, record.body, headers))
        await self._backend.store_all(items)

    async def keep_moving(self, queue: str, owned: set[int]) -> None:
        """For as long as a consumer of the queue lives; `owned` is its shards, and changes."""
        backoff = Backoff(_RETRY_S, _LONGEST_RETRY_S)
        while True:
            while not self.exist(queue):
                first = self._first.setdefault(queue, asyncio.Event())
                first.clear()
                await first.wait()
            try:
                waiting = await self.waiting(queue)
                assert waiting is not None
                waiting.changed.clear()
                at = await self.move(queue, waiting, owned)
                backoff.is_over()
            except BackendError as error:
                log.warning("cannot move delayed messages yet", extra={"queue": queue, "error": str(error)})
                await asyncio.sleep(backoff.next_s())
                continue
            wait_s = 1.0 if at is None else min(1.0, max(0.0, at - self._backend.now()))
            try:
                async with asyncio.timeout(wait_s):
                    await waiting.changed.wait()
            except TimeoutError:
                continue


def _name(queue: str) -> bytes:
    """Of one record, ever."""
    return _write((queue, uuid4().bytes))


def _record(message: KafkaMessage) -> Record:
    later = _read(message.value())
    return Record(
        later.id,
        later.key,
        later.body,
        later.type,
        later.sender,
        later.ttl_s,
        later.priority,
        later.replay,
        dedup_key=later.dedup_key,
    )
