"""Memory, with no engine: a deque with one wake-up a batch, and the standard library's queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.workload import Peer, Tally, build, chunks

YIELD_EVERY = 64
"""Sends between two turns of the event loop where a peer may choose."""


class MemDeque(Peer):
    """What memory can do: append, wake the reader once, take everything."""

    name: ClassVar[str] = "mem-deque"

    async def open(self, folder: Path) -> None:
        self._items: deque[dict[str, Any] | None] = deque()
        self._reader: asyncio.Future[None] | None = None

    async def send(self, number: int, sender: str) -> None:
        self._items.append(build(number, sender))
        if (reader := self._reader) is not None:
            self._reader = None
            reader.set_result(None)
            await asyncio.sleep(0)
        elif not number & YIELD_EVERY - 1:
            await asyncio.sleep(0)

    async def send_all(self, numbers: range, sender: str) -> None:
        for chunk in chunks(numbers, YIELD_EVERY):
            self._append([build(number, sender) for number in chunk])
            await asyncio.sleep(0)

    def _append(self, items: Sequence[dict[str, Any] | None]) -> None:
        self._items.extend(items)
        if (reader := self._reader) is not None:
            self._reader = None
            reader.set_result(None)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._append([None]))
        note, items, new_future = tally.note, self._items, asyncio.get_running_loop().create_future
        while True:
            while items:
                message = items.popleft()
                if message is None:
                    return
                note(message["content"])
            reader = self._reader = new_future()
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
