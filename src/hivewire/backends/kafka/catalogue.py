"""Small values with versions. A log decides who was first: everybody reads the same records in the same order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from confluent_kafka import OFFSET_BEGINNING

from hivewire.backend import Entry
from hivewire.backends.kafka.packing import KafkaMessage, stored_at
from hivewire.backends.kafka.sending import Item
from hivewire.backends.kafka.topics import QUEUE
from hivewire.errors import Closed, ConnectionLost, told

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_CATCH_UP_S: Final = 30.0
_LOCK_S: Final = 30.0
_REMEMBERED: Final = 10_000
_LOCK_LOOK_S: Final = 0.03
_NONE: Final = Entry(b"", 0)
_EPOCHAL: Final = ("agent/", "group/")
DELAYED: Final = "delayed/"
"""Before the name of a queue for which something was delayed, ever."""


class _Change(msgspec.Struct, array_like=True, gc=False):
    """Valid if the key's version is `expected` when its turn comes; its own version is its offset + 1."""

    key: str
    expected: int
    value: bytes
    ttl_s: float | None


_read = msgspec.msgpack.Decoder(_Change).decode
_write = msgspec.msgpack.Encoder().encode


class Follower:
    """Has read one partition up to `reached`, and goes on."""

    def __init__(
        self,
        backend: KafkaBackend,
        topic: str,
        partition: int,
        take: Callable[[KafkaMessage], None],
        *,
        apart: bool = False,
    ) -> None:
        """`apart`: it is read while the group takes partitions away, too."""
        self._backend = backend
        self._apart = apart
        self.topic = topic
        self.partition = partition
        self._take = take
        self.reached = -1
        self._has_warned = False
        self._news = asyncio.Event()
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_over = False

    async def open(self, first: int = OFFSET_BEGINNING) -> None:
        async with self._opening:
            if not self._is_open:
                tail = self._backend.apart if self._apart else self._backend.tail
                self._backend.followers.append(self)
                await tail.follow(self.topic, self.partition, first, self._arrived)
                self._is_open, self._is_over = True, False

    def _arrived(self, messages: Sequence[KafkaMessage], reached: int) -> None:
        for message in messages:
            try:
                self._take(message)
            except Exception as error:  # noqa: BLE001  # of another program, or of a newer version: the rest is read on
                level = logging.DEBUG if self._has_warned else logging.WARNING
                self._has_warned = True
                text = "%s, offset %d: a record that is none of ours is left out, and so will be any other: %s"
                log.log(level, text, self.topic, message.offset(), told(error))
        self.reached = max(self.reached, reached)
        self._news.set()

    async def until(self, offset: int) -> None:
        """All below this offset was read."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                while self.reached < offset:
                    if self._is_over:
                        raise Closed(f"read {self.topic}: the store was closed")
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise ConnectionLost(
                f"read {self.topic}: offset {offset} did not come within {_CATCH_UP_S:g} s; the brokers or this "
                "machine are too busy, try again"
            ) from None

    def end(self) -> None:
        """Nothing is read any more, unless it is opened again."""
        self._is_open, self._is_over = False, True
        self._news.set()

    async def catch_up(self) -> None:
        """All that was there when this was called was read."""
        await self.open()
        ends = await self._backend.admin.ends([(self.topic, self.partition)])
        await self.until(ends[self.topic, self.partition])


class Catalogue:
    """All values, in memory, as of the last record that was read."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._values: dict[str, tuple[Entry, float | None]] = {}
        self._accepted: dict[int, Entry] = {}
        """The newest changes that were taken, by offset: one may be outdated before its writer looks."""
        self._log = Follower(backend, backend.names.catalogue, 0, self._take)

    async def open(self) -> None:
        await self._backend.topics.ensure_own(self._log.topic, 1, {"cleanup.policy": "delete", "retention.ms": "-1"})
        await self._log.catch_up()

    def _take(self, message: KafkaMessage) -> None:
        change = _read(message.value())
        at = stored_at(message)
        if self._at(change.key, at).version != change.expected:
            return  # somebody else was first
        until = None if change.ttl_s is None else at + change.ttl_s
        entry = Entry(change.value, message.offset() + 1)
        self._values[change.key] = entry, until
        self._accepted[message.offset()] = entry
        if len(self._accepted) > _REMEMBERED:
            del self._accepted[next(iter(self._accepted))]
        if change.key.startswith(_EPOCHAL):
            self._backend.epoch += 1
        elif change.key.startswith(QUEUE):
            self._backend.topics.routes.clear()
        elif change.key.startswith(DELAYED):
            self._backend.delays.begun(change.key.removeprefix(DELAYED))

    def _at(self, key: str, now: float) -> Entry:
        entry, until = self._values.get(key, (_NONE, None))
        return _NONE if until is not None and until <= now else entry

    def known(self, key: str) -> Entry:
        """As far as was read."""
        return self._at(key, self._backend.now())

    def names(self, prefix: str) -> list[str]:
        """Keys with this prefix that have a value, without it, as far as was read."""
        return [key.removeprefix(prefix) for key in self._values if key.startswith(prefix) and self.known(key).value]

    async def get(self, key: str) -> Entry:
        await self._log.catch_up()
        return self.known(key)

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        await self._log.catch_up()
        found = {key: self.known(key) for key in sorted(self._values) if key.startswith(prefix)}
        return {key: entry for key, entry in found.items() if entry.version}

    async def put(self, key: str, value: bytes, version: int, ttl_s: float | None = None) -> Entry | None:
        change = _write(_Change(key, version, value, ttl_s))
        offset = await self._backend.store_one(Item(self._log.topic, None, 0, 0, key.encode(), change, None))
        await self._log.until(offset + 1)
        return self._accepted.get(offset)

    async def note(self, key: str) -> None:
        """Say that something exists, and do not wait until that is read here. Who says it again changes nothing."""
        if not self.known(key).version:
            change = _write(_Change(key, 0, b"1", None))
            await self._backend.store_one(Item(self._log.topic, None, 0, 0, key.encode(), change, None))

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncIterator[None]:
        """One at a time, of all processes; who dies in it leaves it when its time is over."""
        key = f"lock/{name}"
        while True:
            entry = await self.get(key)
            mine = None if entry.value else await self.put(key, b"taken", entry.version, _LOCK_S)
            if mine is not None:
                break
            await asyncio.sleep(_LOCK_LOOK_S)
        try:
            yield
        finally:
            await self.put(key, b"", mine.version)
