"""Replies: one topic for all, a fixed partition for each mailbox, read from where it ended when it was opened."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Final

from hivewire.backend import Consumer, Fetched, Ownership, Saved, Unfinished
from hivewire.backends.kafka.news import News
from hivewire.backends.kafka.packing import KafkaMessage, record_of, stored_at

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_MOST: Final = 100_000
Listener = tuple[str, str]
"""A header's name and value."""


class Shared:
    """Followers of partitions that many share: each message goes to who is named in one of its headers."""

    def __init__(self, backend: KafkaBackend, header: str) -> None:
        self._backend = backend
        self._header = header
        self._heard: dict[str, deque[KafkaMessage]] = {}
        self.news: dict[str, News] = {}
        self._followed: dict[tuple[str, int], asyncio.Lock] = {}
        self._open: set[tuple[str, int]] = set()

    async def listen(self, topic: str, partition: int, name: str) -> None:
        """What is stored from now on. The end is asked for first, so that nothing after it is missed."""
        place = (topic, partition)
        async with self._followed.setdefault(place, asyncio.Lock()):
            if place not in self._open:
                ends = await self._backend.admin.ends([place])
                await self._backend.tail.follow(topic, partition, ends[place], self._arrived)
                self._open.add(place)
        self._heard[name] = deque(maxlen=_MOST)
        self.news[name] = News()

    def _arrived(self, messages: Sequence[KafkaMessage], reached: int) -> None:
        for message in messages:
            for header, value in message.headers() or ():
                if header == self._header and value is not None:
                    name = value.decode("utf-8", "replace")
                    heard = self._heard.get(name)
                    if heard is not None:
                        heard.append(message)
                        self.news[name].set()

    def take(self, name: str, limit: int) -> list[KafkaMessage]:
        heard = self._heard.get(name)
        return [] if heard is None else [heard.popleft() for _ in range(min(limit, len(heard)))]

    async def wait(self, name: str, seconds: float) -> None:
        news = self.news.get(name)
        if news is None or self._heard[name]:
            return
        news.clear()
        await news.wait(seconds)

    def forget(self, name: str) -> None:
        self._heard.pop(name, None)
        news = self.news.pop(name, None)
        if news is not None:
            news.set()


class Mailbox(Consumer):
    """Replies for one process. They are not acknowledged: who asked is here, or nobody is."""

    def __init__(self, backend: KafkaBackend, queue: str, shared: Shared, owner: Ownership) -> None:
        self._backend = backend
        self._queue = queue
        self._shared = shared
        self._owner = owner
        self._closed = False

    async def begin(self, topic: str, partition: int) -> None:
        await self._shared.listen(topic, partition, self._queue)
        await self._owner.gained(0, 1, b"")

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        found = self._shared.take(self._queue, min(limit, lanes))
        if not found and wait_s > 0 and not self._closed:
            await self._shared.wait(self._queue, wait_s)
            found = self._shared.take(self._queue, min(limit, lanes))
        return [Fetched(0, message.offset(), 1, record_of(message), stored_at(message)) for message in found]

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        return ()

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return ()

    async def save(self, shards: Mapping[int, Saved]) -> Set[int]:
        return set()

    async def close(self) -> None:
        self._closed = True
        self._shared.forget(self._queue)
