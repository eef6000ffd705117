"""Topics and queues: made when they are first used, known from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from hivewire.backend import QueueSpec
from hivewire.backends.kafka.clients import ROOM_BYTES
from hivewire.backends.kafka.names import GROUP_PREFIX, REPLY_PREFIX
from hivewire.errors import QueueMissing

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

QUEUE = "queue/"
_REPLY_PARTITIONS = 8
_HOUR_MS = "3600000"
_FORGOTTEN_S = 60.0
_decoder = msgspec.msgpack.Decoder(QueueSpec)
_encode = msgspec.msgpack.Encoder().encode


class Route(NamedTuple):
    """Where records of a queue go. `partition`: all of them; else by key, or with `spreads` by id."""

    topic: str
    partitions: int
    partition: int | None
    spreads: bool


class Topics:
    """Which there are, and with how many partitions, as far as this process knows."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._kafka = backend.settings.kafka
        self.partitions: dict[str, int] = {}
        self._made: set[str] = set()
        self._read: dict[str, tuple[int, QueueSpec | None]] = {}
        self._making: dict[str, asyncio.Lock] = {}
        self.routes: dict[str, Route] = {}
        """Of queues that can be sent to without a look at anything; emptied when a queue or a topic changes."""

    async def ensure_own(self, topic: str, partitions: int, config: Mapping[str, str]) -> int:
        """One of our own; returns its number of partitions."""
        known = self.partitions.get(topic)
        if known is not None:
            return known
        async with self._making.setdefault(topic, asyncio.Lock()):
            known = self.partitions.get(topic)
            if known is None:
                known = await self._backend.admin.find(topic)
                if not known:
                    largest = self._backend.options.largest_bytes
                    settled = {
                        "message.timestamp.type": "LogAppendTime",
                        "max.message.bytes": str(largest + ROOM_BYTES),
                        **config,
                    }
                    known = await self._backend.admin.create(topic, partitions, self._kafka.replication_factor, settled)
                    self._made.add(topic)
                # Brokers name a leader before it takes anything, and what is sent then may be stored out of order.
                await self._backend.admin.ends([(topic, number) for number in range(known)])
                self.partitions[topic] = known
                self.routes.clear()
        return known

    async def ensure(self, queue: str) -> int:
        """The topic of a queue; unread messages are kept for ever."""
        topic = self._backend.names.topic(queue)
        known = self.partitions.get(topic)
        if known is not None:
            return known
        if queue.startswith(REPLY_PREFIX):
            kept = {"cleanup.policy": "delete", "retention.ms": _HOUR_MS}
            return await self.ensure_own(topic, _REPLY_PARTITIONS, kept)
        kept = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        count = await self.ensure_own(topic, 1 if queue.startswith(GROUP_PREFIX) else self._wanted(), kept)
        if topic in self._made:
            self._made.discard(topic)
            if self.known(queue) is not None:  # it was there before, and somebody has deleted it
                await self._backend.claims.made_anew(queue)
                await self.notice_new()
        return count

    def _wanted(self) -> int:
        origins = self._backend.settings.origins
        if "shards" in origins and "kafka.num_partitions" not in origins:
            return self._backend.settings.shards
        return self._kafka.num_partitions

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        """The topic, and its entry in the catalogue; the first one wins."""
        known = self.known(spec.name)
        if known is not None and (known.mode is not None or spec.mode is None):
            return known
        partitions = await self.ensure(spec.name)
        wanted = msgspec.structs.replace(spec, shards=partitions)
        while True:
            entry = await self._backend.catalogue.get(QUEUE + spec.name)
            if entry.value:
                found = _decoder.decode(entry.value)
                if found.mode is not None or spec.mode is None:
                    break
                wanted = msgspec.structs.replace(found, mode=spec.mode)
            if await self._backend.catalogue.put(QUEUE + spec.name, _encode(wanted), entry.version) is not None:
                return wanted
        return found

    def known(self, queue: str) -> QueueSpec | None:
        """As far as the catalogue was read."""
        entry = self._backend.catalogue.known(QUEUE + queue)
        version, spec = self._read.get(queue, (0, None))
        if entry.version != version:
            spec = _decoder.decode(entry.value) if entry.value else None
            self._read[queue] = (entry.version, spec)
        return spec

    def route(self, queue: str) -> Route:
        """The topic is known here."""
        topic = self._backend.names.topic(queue)
        partitions = self.partitions[topic]
        spec = self.known(queue)
        mailbox = self._backend.reply_partition(queue, partitions) if queue.startswith(REPLY_PREFIX) else None
        return Route(topic, partitions, mailbox, spec is not None and spec.mode == "competing")

    def changed(self, topic: str) -> None:
        """It may be gone: look again."""
        self.partitions.pop(topic, None)
        self.routes.clear()

    async def notice_new(self) -> None:
        """Of those that are read here: which were deleted and made anew under the same name. A reader finds that by
        itself only when it stands behind the end of the new one. Else it passes over what comes before its position,
        and what was committed of the old one passes for finished."""
        consumers = tuple(self._backend.consumers)
        found = await self._backend.admin.topic_ids({one.topic for one in consumers})
        for consumer in consumers:
            if consumer.topic in found:  # else it will be made anew by who sends to it
                await consumer.reads(found[consumer.topic])

    async def check_mailbox(self, queue: str) -> None:
        """Raises `QueueMissing` when nobody waits for replies there any more."""
        if self.known(queue) is None and not (await self._backend.catalogue.get(QUEUE + queue)).value:
            raise QueueMissing(f"nobody waits for replies at {queue}")

    async def forget(self, queue: str) -> None:
        """Take it from the catalogue."""
        entry = await self._backend.catalogue.get(QUEUE + queue)
        if entry.value:
            await self._backend.catalogue.put(QUEUE + queue, b"", entry.version, _FORGOTTEN_S)

    async def look_up(self, queue: str) -> QueueSpec | None:
        """As the catalogue says now, if it is not known here."""
        known = self.known(queue)
        if known is None:
            await self._backend.catalogue.get(QUEUE + queue)
        return known or self.known(queue)

    def count(self) -> int:
        """Topics of queues, as far as the catalogue was read."""
        return sum(not name.startswith(REPLY_PREFIX) for name in self._backend.catalogue.names(QUEUE))

    async def all(self) -> Sequence[QueueSpec]:
        entries = await self._backend.catalogue.scan(QUEUE)
        return [_decoder.decode(entry.value) for entry in entries.values() if entry.value]
