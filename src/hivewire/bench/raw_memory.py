"""Memory, with no engine: a deque with one wake-up a batch, and the standard library's queue."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any, ClassVar

from hivewire.bench.workload import Peer, Tally, answer_to, build, chunks

YIELD_EVERY = 64
"""Sends between two turns of the event loop where a peer may choose."""


class Line:
    """One queue: what waits, and who waits for it."""

    __slots__ = ("items", "reader")

    def __init__(self) -> None:
        self.items: deque[dict[str, Any] | None] = deque()
        self.reader: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if (reader := self.reader) is not None:
            self.reader = None
            reader.set_result(None)


class MemDeque(Peer):
    """What memory can do: append, wake the reader once, take everything."""

    name: ClassVar[str] = "mem-deque"

    async def open(self, folder: Path) -> None:
        self._lines = [Line() for _ in range(self.queues)]
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def send(self, number: int, sender: str) -> None:
        line = self._lines[0]
        line.items.append(build(number, sender))
        if (reader := line.reader) is not None:
            line.reader = None
            reader.set_result(None)
            await asyncio.sleep(0)
        elif not number & YIELD_EVERY - 1:
            await asyncio.sleep(0)

    async def send_all(self, numbers: range, sender: str) -> None:
        lines, queues = self._lines, self.queues
        for chunk in chunks(numbers, YIELD_EVERY):
            if queues == 1:
                lines[0].items.extend([build(number, sender) for number in chunk])
                lines[0].wake()
            else:
                for number in chunk:
                    line = lines[number % queues]
                    line.items.append(build(number, sender))
                    line.wake()
            await asyncio.sleep(0)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for line in self._lines:
                group.create_task(self._read(line, tally, stop))

    async def _read(self, line: Line, tally: Tally, stop: asyncio.Event) -> None:
        note, items, new_future = tally.note, line.items, asyncio.get_running_loop().create_future
        self._ends_with(line, stop)
        while True:
            while items:
                message = items.popleft()
                if message is None:
                    return
                note(message["content"])
            reader = line.reader = new_future()
            await reader

    def _ends_with(self, line: Line, stop: asyncio.Event) -> None:
        def end(_: object) -> None:
            line.items.append(None)
            line.wake()

        asyncio.create_task(stop.wait()).add_done_callback(end)

    async def ask(self, number: int) -> dict[str, Any]:
        line, message = self._lines[0], build(number, "p0")
        reply = self._replies[message["id"]] = asyncio.get_running_loop().create_future()
        line.items.append(message)
        line.wake()
        content: dict[str, Any] = await reply
        return content

    async def answer(self, stop: asyncio.Event) -> None:
        line, new_future = self._lines[0], asyncio.get_running_loop().create_future
        self._ends_with(line, stop)
        while True:
            while line.items:
                asked = line.items.popleft()
                if asked is None:
                    return
                reply = answer_to(asked["id"], asked["content"])
                self._replies.pop(reply["in_reply_to"]).set_result(reply["content"])
            reader = line.reader = new_future()
            await reader


class AsyncioQueue(Peer):
    """`asyncio.Queue`: what most programs would use."""

    name: ClassVar[str] = "asyncio.Queue"

    async def open(self, folder: Path) -> None:
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def send(self, number: int, sender: str) -> None:
        is_waited_for = self._queue.empty()
        await self._queue.put(build(number, sender))
        if is_waited_for or not number & YIELD_EVERY - 1:
            await asyncio.sleep(0)

    async def send_all(self, numbers: range, sender: str) -> None:
        put = self._queue.put_nowait
        for chunk in chunks(numbers, YIELD_EVERY):
            for number in chunk:
                put(build(number, sender))
            await asyncio.sleep(0)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._queue.put_nowait(None))
        note, queue = tally.note, self._queue
        while (message := await queue.get()) is not None:
            note(message["content"])
