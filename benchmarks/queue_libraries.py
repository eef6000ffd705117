"""Queues on SQLite that people install: litequeue and persist-queue, as they come, each side in its own thread."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from pathlib import Path
from time import sleep
from typing import Any, ClassVar

import msgspec

from hivewire.bench.workload import Peer, Tally, Wire, build

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


class Library(Peer):
    """A synchronous queue: the producer's thread and the consumer's thread, each with its own object on one file."""

    async def open(self, folder: Path) -> None:
        self._folder = folder
        self._producer = self._queue()
        self._loop = asyncio.get_running_loop()

    @abstractmethod
    def _queue(self) -> Any: ...

    @abstractmethod
    def _take(self, queue: Any) -> tuple[Any, str] | None:
        """The next message and what acknowledges it."""

    @abstractmethod
    def _ack(self, queue: Any, handle: Any) -> None: ...

    async def send(self, number: int, sender: str) -> None:
        await asyncio.to_thread(self._producer.put, _encode(build(number, sender)).decode())

    async def send_all(self, numbers: range, sender: str) -> None:
        def put() -> None:
            for number in numbers:
                self._producer.put(_encode(build(number, sender)).decode())

        await asyncio.to_thread(put)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        stopped = threading.Event()

        def run() -> None:
            queue = self._queue()
            while not stopped.is_set():
                taken = self._take(queue)
                if taken is None:
                    sleep(0.001)  # the library has no way to wait for a message
                    continue
                handle, text = taken
                content = _decode(text).content
                self._ack(queue, handle)
                self._loop.call_soon_threadsafe(tally.note, content)

        running = asyncio.create_task(asyncio.to_thread(run))
        await stop.wait()
        stopped.set()
        await running


class LiteQueuePeer(Library):
    name: ClassVar[str] = "litequeue"

    def _queue(self) -> Any:
        from litequeue import LiteQueue

        return LiteQueue(str(self._folder / "lite.db"))

    def _take(self, queue: Any) -> tuple[Any, str] | None:
        message = queue.pop()
        return None if message is None else (message.message_id, message.data)

    def _ack(self, queue: Any, handle: Any) -> None:
        queue.done(handle)


class PersistQueuePeer(Library):
    """One object for both threads: two on one file do not see each other's messages."""

    name: ClassVar[str] = "persist-queue"
    _shared: Any = None

    def _queue(self) -> Any:
        from persistqueue import SQLiteAckQueue

        if self._shared is None:
            self._shared = SQLiteAckQueue(str(self._folder / "persist"), multithreading=True)
        return self._shared

    def _take(self, queue: Any) -> tuple[Any, str] | None:
        from persistqueue import Empty

        try:
            taken = queue.get(timeout=0.05, raw=True)
        except Empty:
            return None
        return taken["pqid"], taken["data"]

    def _ack(self, queue: Any, handle: Any) -> None:
        queue.ack(id=handle)
