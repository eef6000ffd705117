"""Reading partitions without a group: following their ends, and reading a stretch again.

Every call of the client is made by its one thread: this version of the client holds a lock for as long as a
`poll` lasts, so a call from another thread would wait for it, or for ever.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from hivewire.backends.kafka.clients import patiently, problem
from hivewire.backends.kafka.packing import KafkaMessage
from hivewire.errors import BackendError, Closed, ConnectionLost

log = logging.getLogger(__name__)

_POLL_S: Final = 0.01
_IDLE_S: Final = 0.1
_TOGETHER: Final = 1_000
_METADATA_S: Final = 5.0
_COMMITTED_S: Final = 2.0

Place = tuple[str, int]
Sink = Callable[[Sequence[KafkaMessage], int], None]
"""Told, on the event loop, of messages and of the offset that was reached."""


class Tail:
    """A client that reads what it is told to, on a thread of its own."""

    def __init__(self, options: dict[str, Any], name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._sinks: dict[Place, tuple[int, Sink]] = {}
        self._reading: dict[Place, int] = {}
        """On the thread: for which sink each partition is read."""
        self._numbers = count()
        self._commands: deque[Callable[[Consumer], None]] = deque()
        self._wanted = threading.Event()
        self._ended = False
        self._locks: dict[Place, asyncio.Lock] = {}
        self._thread = threading.Thread(target=self._run, name=f"hivewire-kafka-{name}", daemon=True)
        self._thread.start()

    # -- on the event loop

    async def follow(self, topic: str, partition: int, offset: int, sink: Sink) -> None:
        """From that offset on, for ever. One sink a partition."""
        place, number = (topic, partition), next(self._numbers)
        self._sinks[place] = number, sink

        def start(client: Consumer) -> None:
            self._reading[place] = number
            # A topic that the client has not met would be looked for after half a second.
            client.list_topics(topic, timeout=_METADATA_S)
            client.incremental_assign([TopicPartition(topic, partition, offset)])

        try:
            await self._command(start, f"read {topic}")
        except BaseException:
            self._sinks.pop(place, None)
            raise

    def unfollow(self, topic: str, partition: int) -> None:
        if self._sinks.pop((topic, partition), None) is not None:
            self._commands.append(lambda client: client.incremental_unassign([TopicPartition(topic, partition)]))
            self._wanted.set()

    def pause(self, places: Sequence[Place]) -> None:
        self._flow(places, lambda client, held: client.pause(held))

    def resume(self, places: Sequence[Place]) -> None:
        self._flow(places, lambda client, held: client.resume(held))

    def _flow(self, places: Sequence[Place], change: Callable[[Consumer, list[TopicPartition]], None]) -> None:
        def run(client: Consumer) -> None:
            held = [TopicPartition(*place) for place in places if place in self._sinks]
            try:
                change(client, held)
            except KafkaException as error:
                log.warning("the flow of partitions is not changed: %s", str(error))

        self._commands.append(run)
        self._wanted.set()

    async def read(
        self, topic: str, partition: int, first: int, last: int, wanted: Collection[int]
    ) -> list[KafkaMessage]:
        """The messages at these offsets, all within `first` to `last`; those that are gone are left out."""
        async with self._locks.setdefault((topic, partition), asyncio.Lock()):
            found: list[KafkaMessage] = []
            done = self._loop.create_future()

            def sink(messages: Sequence[KafkaMessage], reached: int) -> None:
                found.extend([message for message in messages if message.offset() in wanted])
                if reached > last and not done.done():
                    done.set_result(None)

            try:
                await self.follow(topic, partition, first, sink)
                async with asyncio.timeout(30.0):
                    await done
            except TimeoutError:
                raise ConnectionLost(f"read {topic} again: nothing came within 30 s") from None
            finally:
                self.unfollow(topic, partition)
            return found

    async def committed(self, places: Sequence[Place]) -> dict[Place, tuple[int, str]]:
        """How far the group is, with the metadata; partitions without a commit are left out.

        Asked by a consumer: the administrator of librdkafka 2.16 crashes when the coordinator of the group has
        just moved or is being loaded.
        """
        found: dict[Place, tuple[int, str]] = {}

        def ask(client: Consumer) -> None:
            asked = [TopicPartition(topic, number) for topic, number in places]
            for at in client.committed(asked, timeout=_COMMITTED_S):
                if at.error is not None:
                    raise KafkaException(at.error)
                if at.offset >= 0:
                    found[at.topic, at.partition] = (at.offset, at.metadata or "")

        await patiently(lambda: self._command(ask, "look at commits"))
        return found

    async def _command(self, command: Callable[[Consumer], None], doing: str) -> None:
        if self._ended:
            raise Closed(f"{doing}: the store was closed")
        done: asyncio.Future[BackendError | None] = self._loop.create_future()

        def run(client: Consumer) -> None:
            try:
                command(client)
                self._post(_resolve, done, None)
            except KafkaException as error:
                self._post(_resolve, done, problem(doing, error))

        self._commands.append(run)
        self._wanted.set()
        failed = await done
        if failed is not None:
            raise failed

    def _arrived(self, batches: dict[Place, tuple[list[KafkaMessage], int]], numbers: dict[Place, int]) -> None:
        for place, (messages, reached) in batches.items():
            number, sink = self._sinks.get(place, (-1, None))
            if sink is not None and numbers[place] == number:  # else it is of an earlier one
                sink(messages, reached)

    async def close(self) -> None:
        self._ended = True
        self._wanted.set()
        await asyncio.to_thread(self._thread.join)

    # -- on the thread

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _run(self) -> None:
        client = Consumer(self._options)
        try:
            while not self._ended:
                if not self._sinks and not self._commands:
                    self._wanted.wait(_IDLE_S)
                self._wanted.clear()
                try:
                    while self._commands:
                        self._commands.popleft()(client)
                    first = client.poll(_POLL_S)
                    if first is not None:
                        self._hand_over([first, *client.consume(_TOGETHER, 0)])
                except KafkaException as error:
                    log.warning("the reader goes on after: %s", str(error))
        finally:
            client.close()

    def _hand_over(self, messages: Sequence[KafkaMessage]) -> None:
        batches: dict[Place, tuple[list[KafkaMessage], int]] = {}
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                log.warning("reading failed: %s", str(error))
                continue
            place = (message.topic(), message.partition())
            found = batches.get(place, ([], 0))[0]
            offset: int = message.offset()
            if error is None:
                found.append(message)
                offset += 1
            batches[place] = (found, offset)
        if batches:
            self._post(self._arrived, batches, {place: self._reading[place] for place in batches})


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
