"""aiokafka, with all the batching that it offers, and FastStream on it as its guide shows it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec

from hivewire.bench.served import TopicsOnKafka
from hivewire.bench.workload import Tally, Wire, build, chunks, content_of

AT_ONCE = 5_000
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


class AioKafka(TopicsOnKafka):
    name: ClassVar[str] = "aiokafka"

    async def connect(self, url: str) -> None:
        from aiokafka import AIOKafkaProducer

        self._address = url.removeprefix("kafka://")
        self._producer = AIOKafkaProducer(bootstrap_servers=self._address, acks="all", enable_idempotence=True)
        await self._producer.start()

    async def disconnect(self) -> None:
        await self._producer.stop()

    async def send(self, number: int, sender: str) -> None:
        body = _encode(build(number, sender))
        await self._producer.send_and_wait(self.queue_of(number), body, sender.encode())

    async def send_all(self, numbers: range, sender: str) -> None:
        key = sender.encode()
        for chunk in chunks(numbers, AT_ONCE):
            sent = [await self._producer.send(self.queue_of(n), _encode(build(n, sender)), key) for n in chunk]
            await asyncio.gather(*sent)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(
            *self.queue_names(),
            bootstrap_servers=self._address,
            group_id=self.sink,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        ended = asyncio.create_task(stop.wait())
        while not ended.done():
            found = await consumer.getmany(timeout_ms=100, max_records=1_000)
            for batch in found.values():
                for message in batch:
                    tally.note(_decode(message.value).content)
            if found:
                await consumer.commit()
        await consumer.stop()


class FastStreamKafka(TopicsOnKafka):
    """Acknowledged after the handler."""

    name: ClassVar[str] = "FastStream Kafka"

    async def connect(self, url: str) -> None:
        from faststream.kafka import KafkaBroker

        self._broker = KafkaBroker(url.removeprefix("kafka://"), logger=None, acks="all", enable_idempotence=True)
        await self._broker.connect()

    async def send(self, number: int, sender: str) -> None:
        await self._broker.publish(content_of(number), topic=self.queue_of(number), key=sender.encode())

    async def send_all(self, numbers: range, sender: str) -> None:
        bodies = [content_of(number) for number in numbers]
        await self._broker.publish_batch(*bodies, topic=self.queue_of(numbers[0]))

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        from faststream import AckPolicy

        async def handle(content: dict[str, Any]) -> None:
            tally.note(content)

        policy = AckPolicy.NACK_ON_ERROR
        options: dict[str, Any] = {"group_id": self.sink, "auto_offset_reset": "earliest", "ack_policy": policy}
        self._broker.subscriber(self.sink, **options)(handle)
        await self._broker.start()
        await stop.wait()

    async def disconnect(self) -> None:
        await self._broker.stop()
