"""Hivewire through its public interface, default settings: `send`, `send_many`, a `Worker` that reads the content."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import hivewire as hw
from hivewire.bench.served import ServedByKafka, ServedByRedis
from hivewire.bench.workload import TRACE, Peer, Tally, content_of


def message(number: int, sender: str, to: str = "sink") -> hw.Message:
    return hw.Message(type="task", sender=sender, to=to, content=content_of(number), metadata={"trace": TRACE})


class Hivewire(Peer):
    settings: ClassVar[dict[str, Any]] = {}

    async def connect(self, url: str) -> None:
        self._protocol = hw.connect(url, **self.settings)
        await self._protocol.__aenter__()

    async def disconnect(self) -> None:
        await self._protocol.close()

    async def send(self, number: int, sender: str) -> None:
        await self._protocol.send(message(number, sender, self.queue_of(number)))

    async def send_all(self, numbers: range, sender: str) -> None:
        queue_of = self.queue_of
        await self._protocol.send_many([message(number, sender, queue_of(number)) for number in numbers])

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for name in self.queue_names():
                worker = hw.Worker(name)

                @worker.on("task")
                async def handle(message: hw.Message, ctx: hw.Context) -> None:
                    tally.note(message.content)

                group.create_task(worker.serve(self._protocol, stop=stop.wait()))

    async def ask(self, number: int) -> dict[str, Any]:
        reply = await self._protocol.request(message(number, "p0", self.sink), timeout_s=30)
        content: dict[str, Any] = reply.content
        return content

    async def answer(self, stop: asyncio.Event) -> None:
        worker = hw.Worker(self.sink)

        @worker.on("task")
        async def handle(message: hw.Message, ctx: hw.Context) -> Any:
            return message.content

        await worker.serve(self._protocol, stop=stop.wait())

    async def remove(self) -> None:
        for name in self.queue_names():
            await self._protocol.forget(name)


class OnMemory(Hivewire):
    name: ClassVar[str] = "hivewire memory"

    async def open(self, folder: Path) -> None:
        await self.connect("memory://bench")

    async def close(self) -> None:
        await self.disconnect()


class OnRedis(Hivewire, ServedByRedis):
    name: ClassVar[str] = "hivewire redis"


class OnKafka(Hivewire, ServedByKafka):
    name: ClassVar[str] = "hivewire kafka"


class OnSqlite(Hivewire):
    name: ClassVar[str] = "hivewire sqlite"

    async def open(self, folder: Path) -> None:
        await self.connect(f"sqlite:///{folder / 'ours.db'}")

    async def close(self) -> None:
        await self.disconnect()


class OnSqliteNormal(OnSqlite):
    name: ClassVar[str] = "hivewire sqlite NORMAL"
    settings: ClassVar[dict[str, Any]] = {"sqlite_synchronous": "normal"}
