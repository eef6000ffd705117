"""Reading partitions without a group.

Every call of the client is made by its one thread: this version of the client holds a lock for as long as a
`poll` lasts, so a call from another thread would wait for it, or for ever.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from hivewire.backends.kafka.clients import problem
from hivewire.backends.kafka.packing import KafkaMessage
from hivewire.errors import Closed, HivewireError

log = logging.getLogger(__name__)

_POLL_S: Final = 0.01
_IDLE_S: Final = 0.1
_TOGETHER: Final = 1_000
_METADATA_S: Final = 5.0

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
        self._asked: set[asyncio.Future[HivewireError | None]] = set()
        self._thread = threading.Thread(target=self._run, name=f"hivewire-kafka-{name}", daemon=True)
        self._thread.start()

    # -- on the event loop

    async def follow(self, topic: str, partition: int, offset: int, sink: Sink) -> None:
        """From that offset on, for ever. One sink a partition."""
        place, number = (topic, partition), next(self._numbers)
        self._sinks[place] = number, sink

        def start(client: Consumer) -> None:
            at = TopicPartition(topic, partition, offset)
            if place in self._reading:  # whoever wanted it before was cancelled
                client.seek(at)
                client.resume([at])
            else:
                # A topic that the client has not met would be looked for after half a second.
                client.list_topics(topic, timeout=_METADATA_S)
                client.incremental_assign([at])
            self._reading[place] = number

        try:
            await self.command(start, f"read {topic}")
        except BaseException:
            self._sinks.pop(place, None)
            raise

    def unfollow(self, topic: str, partition: int) -> None:
        place = topic, partition
        if self._sinks.pop(place, None) is not None:
            self._order(lambda client: self._let_go(client, place))

    def _let_go(self, client: Consumer, place: Place) -> None:
        """On the thread, unless somebody follows it anew."""
        if place not in self._sinks and self._reading.pop(place, None) is not None:
            client.incremental_unassign([TopicPartition(*place)])

    def _order(self, command: Callable[[Consumer], None]) -> None:
        self._commands.append(command)
        self.stir()

    def stir(self) -> None:
        """There is something to do."""
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

        self._order(run)

    async def command(self, command: Callable[[Consumer], None], doing: str) -> None:
        """Run this on the thread; returns when it was, and raises its error as ours."""
        if self._ended:
            raise Closed(f"{doing}: the store was closed")
        done: asyncio.Future[HivewireError | None] = self._loop.create_future()
        self._asked.add(done)
        done.add_done_callback(self._asked.discard)

        def run(client: Consumer) -> None:
            try:
                command(client)
                self._post(_resolve, done, None)
            except KafkaException as error:
                self._post(_resolve, done, problem(doing, error))

        self._order(run)
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
        for asked in tuple(self._asked):
            _resolve(asked, Closed("use Kafka: it was closed"))

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

    def _hand_over(self, messages: list[KafkaMessage]) -> None:
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
            self._post(self._arrived, batches, {place: self._reading.get(place, -1) for place in batches})


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
