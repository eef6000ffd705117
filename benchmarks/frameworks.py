"""Frameworks on Redis as their guides show them, each with its acknowledgement after the handler."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, ClassVar

from hivewire.bench.served import ServedByRedis
from hivewire.bench.workload import Tally, content_of


class FastStreamRedis(ServedByRedis):
    """A stream with a consumer group."""

    name: ClassVar[str] = "FastStream"
    group = "g"

    async def connect(self, url: str) -> None:
        from faststream.redis import RedisBroker

        self._broker = RedisBroker(url, logger=None, max_connections=500)
        await self._broker.connect()

    async def send(self, number: int, sender: str) -> None:
        await self._broker.publish(content_of(number), stream=self.queue_of(number), headers={"from": sender})

    async def send_all(self, numbers: range, sender: str) -> None:
        """It has no batches for streams."""
        for number in numbers:
            await self.send(number, sender)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        from faststream import AckPolicy
        from faststream.redis import StreamSub

        stream = StreamSub("sink", group="g", consumer="c")

        async def handle(content: dict[str, Any]) -> None:
            tally.note(content)

        self._broker.subscriber(stream=stream, ack_policy=AckPolicy.NACK_ON_ERROR)(handle)
        await self._broker.start()
        await stop.wait()

    async def disconnect(self) -> None:
        await self._broker.stop()


class TaskiqRedis(ServedByRedis):
    """Its broker on streams."""

    name: ClassVar[str] = "Taskiq"

    async def connect(self, url: str) -> None:
        from taskiq_redis import RedisStreamBroker

        logging.getLogger("taskiq").setLevel(logging.ERROR)
        self._broker = RedisStreamBroker(url, queue_name="sink", consumer_id="0")
        self._tally = Tally()

        async def handle(content: dict[str, Any]) -> None:
            self._tally.note(content)

        self._task = self._broker.task(task_name="task")(handle)
        await self._broker.startup()

    async def send(self, number: int, sender: str) -> None:
        await self._task.kiq(content_of(number))

    async def send_all(self, numbers: range, sender: str) -> None:
        """It has no batches."""
        for number in numbers:
            await self.send(number, sender)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        from taskiq.api import run_receiver_task

        self._tally = tally
        self._receiving = asyncio.create_task(run_receiver_task(self._broker))
        await stop.wait()
        self._receiving.cancel()  # it does not always end, and so is not waited for

    async def disconnect(self) -> None:
        await self._broker.shutdown()


class DramatiqRedis(ServedByRedis):
    """Its worker with the default eight threads; it is not for asyncio, so each sender has a thread."""

    name: ClassVar[str] = "Dramatiq"

    async def connect(self, url: str) -> None:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        self._broker = RedisBroker(url=url)
        self._tally = Tally()
        loop, lock = asyncio.get_running_loop(), threading.Lock()
        arrived: list[dict[str, Any]] = []

        def note_all() -> None:
            with lock:
                taken = arrived[:]
                arrived.clear()
            for content in taken:
                self._tally.note(content)

        def handle(content: dict[str, Any]) -> None:
            with lock:
                arrived.append(content)
                is_first = len(arrived) == 1
            if is_first:
                loop.call_soon_threadsafe(note_all)

        self._actor = dramatiq.actor(handle, actor_name="task", broker=self._broker, queue_name="sink")

    async def send(self, number: int, sender: str) -> None:
        await asyncio.to_thread(self._actor.send, content_of(number))

    async def send_all(self, numbers: range, sender: str) -> None:
        """It has no batches."""

        def send() -> None:
            for number in numbers:
                self._actor.send(content_of(number))

        await asyncio.to_thread(send)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        from dramatiq import Worker

        self._tally = tally
        worker = Worker(self._broker, worker_threads=8)
        worker.start()
        await stop.wait()
        await asyncio.to_thread(worker.stop)

    async def disconnect(self) -> None:
        self._broker.close()
