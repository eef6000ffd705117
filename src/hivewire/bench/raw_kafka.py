"""confluent-kafka without anything around it: the best that can be done with batches, and as most programs use it.

`kafka-batched`: reports are handed to the loop once per wake, the consumer's thread polls and then takes all, one
commit a batch. `confluent-kafka raw`: the same, but who sends many only counts reports.
Neither has retries, dead letters, order over a takeover, nor attempts.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from hivewire.bench.served import TopicsOnKafka
from hivewire.bench.workload import Tally, Wire, answer_to, build, chunks

AT_ONCE = 5_000
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


class _Reports:
    """Delivery reports for the loop: one wake for all that came."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._came: deque[tuple[asyncio.Future[None], KafkaError | None]] = deque()
        self._is_woken = False

    def of(self, waiter: asyncio.Future[None]) -> Callable[[KafkaError | None, Message], None]:
        def report(error: KafkaError | None, _: Message) -> None:
            self._came.append((waiter, error))
            if not self._is_woken:
                self._is_woken = True
                self._loop.call_soon_threadsafe(self._hand_over)

        return report

    def _hand_over(self) -> None:
        self._is_woken = False
        while self._came:
            waiter, error = self._came.popleft()
            if error is not None:
                waiter.set_exception(RuntimeError(error.str()))
            else:
                waiter.set_result(None)


class KafkaBatched(TopicsOnKafka):
    name: ClassVar[str] = "kafka-batched"

    @property
    def replies(self) -> str:
        return f"{self.sink}-replies"

    def topics(self) -> dict[str, int]:
        return {**super().topics(), self.replies: 1}

    async def connect(self, url: str) -> None:
        self._address = url.removeprefix("kafka://")
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            {
                "bootstrap.servers": self._address,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                "compression.type": "snappy",
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._reports = _Reports()
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._start(self._poll)

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(0.1)

    async def disconnect(self) -> None:
        self._ended.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _post(self, topic: str, body: bytes, key: str) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._producer.produce(topic, body, key, on_delivery=self._reports.of(waiter))
        return waiter

    async def send(self, number: int, sender: str) -> None:
        await self._post(self.queue_of(number), _encode(build(number, sender)), sender)

    async def send_all(self, numbers: range, sender: str) -> None:
        for chunk in chunks(numbers, AT_ONCE):
            for waiter in [self._post(self.queue_of(n), _encode(build(n, sender)), sender) for n in chunk]:
                await waiter

    def _consumer(self, topics: list[str]) -> Consumer:
        made = Consumer(
            {
                "bootstrap.servers": self._address,
                "group.id": self.sink,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
            }
        )
        made.subscribe(topics)
        return made

    async def _take(self, handle: Callable[[list[Message]], None], stop: asyncio.Event) -> None:
        ended, handled = threading.Event(), threading.Event()

        def take(batch: list[Message]) -> None:
            handle([message for message in batch if message.error() is None])
            handled.set()

        def run() -> None:
            client = self._consumer(self.queue_names())
            while not ended.is_set():
                first = client.poll(0.1)
                if first is not None:
                    handled.clear()
                    self._loop.call_soon_threadsafe(take, [first, *client.consume(1_000, 0)])
                    handled.wait()
                    client.commit(asynchronous=True)
            client.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        await stop.wait()
        ended.set()
        await asyncio.to_thread(thread.join)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        def handle(batch: list[Message]) -> None:
            for message in batch:
                tally.note(_decode(message.value() or b"").content)

        await self._take(handle, stop)

    async def ask(self, number: int) -> dict[str, Any]:
        if not any(thread.name == self.replies for thread in self._threads):
            await self._hear_replies()
        body = build(number, "p0")
        waiter: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._asked[body["id"]] = waiter
        self._producer.produce(self.sink, _encode(body), "p0")
        return await waiter

    async def _hear_replies(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()

        def heard(batch: list[Message]) -> None:
            for message in batch:
                if message.error() is None:
                    reply = _decode(message.value() or b"")
                    self._asked.pop(reply.in_reply_to or "").set_result(reply.content)

        def run() -> None:
            client = Consumer({"bootstrap.servers": self._address, "group.id": uuid4().hex, "fetch.wait.max.ms": 100})
            place = TopicPartition(self.replies, 0)
            end = client.get_watermark_offsets(place, timeout=10)
            client.assign([TopicPartition(self.replies, 0, end[1])])
            self._loop.call_soon_threadsafe(ready.set_result, None)
            while not self._ended.is_set():
                first = client.poll(0.1)
                if first is not None:
                    self._loop.call_soon_threadsafe(heard, [first, *client.consume(1_000, 0)])
            client.close()

        thread = threading.Thread(target=run, name=self.replies, daemon=True)
        self._threads.append(thread)
        thread.start()
        await ready

    async def answer(self, stop: asyncio.Event) -> None:
        def handle(batch: list[Message]) -> None:
            for message in batch:
                asked = _decode(message.value() or b"")
                self._producer.produce(self.replies, _encode(answer_to(asked.id, asked.content)))

        await self._take(handle, stop)


class ConfluentRaw(KafkaBatched):
    """Senders count reports in the callback; only `send` waits for its own."""

    name: ClassVar[str] = "confluent-kafka raw"

    async def send_all(self, numbers: range, sender: str) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        left = len(numbers)

        def report(error: KafkaError | None, _: Message) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._loop.call_soon_threadsafe(done.set_result, None)

        for number in numbers:
            self._producer.produce(self.queue_of(number), _encode(build(number, sender)), sender, on_delivery=report)
        await done
