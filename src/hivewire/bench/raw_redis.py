"""Redis with no engine: streams read by one consumer group, acknowledged once a batch. No reconnect, no leases."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import hiredis
import msgspec

from hivewire.bench.served import ServedByRedis
from hivewire.bench.workload import Tally, Wire, answer_to, build, chunks

COUNT, BLOCK_MS = 500, 200
SENDERS = 256
"""In W2 so many sends are under way together, each with an answer of its own."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


class Connection(asyncio.Protocol):
    """What is asked in one turn of the loop leaves in one write; answers come in the order of the questions."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows tuples of one only
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._unsent))  # type: ignore[attr-defined]  # uvloop's does not say that it can
        self._unsent.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        waiting, gets = self._waiting, self._reader.gets
        while (answer := gets()) is not False:
            future = waiting.popleft()
            if future.done():
                continue
            if isinstance(answer, hiredis.ReplyError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def close(self) -> None:
        self._transport.close()


class RedisAutopipe(ServedByRedis):
    """What asyncio and hiredis can do: one connection for writes, one for blocking reads.

    One stream a queue, one group."""

    name: ClassVar[str] = "redis-autopipe"

    async def open(self, folder: Path) -> None:
        await super().open(folder)
        for name in self.queue_names():
            await self._writes.call("XGROUP", "CREATE", name, "g", "0", "MKSTREAM")

    async def remove(self) -> None:
        await self._writes.call("DEL", *self.queue_names(), self._mailbox)

    async def connect(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = parts.hostname or "127.0.0.1", parts.port or 6379
        self._password = parts.password
        self._mailbox = f"{self.sink}-replies"
        self._writes = await self._dial()
        self._reads = await self._dial()
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._listener: asyncio.Task[None] | None = None

    async def _dial(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection = (await loop.create_connection(Connection, *self._place))[1]
        if self._password is not None:
            await connection.call("AUTH", self._password)
        return connection

    async def send(self, number: int, sender: str) -> None:
        await self._writes.call("XADD", self.queue_of(number), "*", "b", _encode(build(number, sender)))

    async def send_all(self, numbers: range, sender: str) -> None:
        call, queue_of = self._writes.call, self.queue_of
        for chunk in chunks(numbers, SENDERS):
            sends = [call("XADD", queue_of(number), "*", "b", _encode(build(number, sender))) for number in chunk]
            for sent in sends:
                await sent

    async def _take(self, names: Sequence[str]) -> Any:
        command = ("XREADGROUP", "GROUP", "g", "c", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS")
        self._reading = self._reads.call(*command, *names, *[">"] * len(names))
        return await self._reading or ()

    def _ends_with(self, stop: asyncio.Event) -> None:
        """A read that waits ends at once."""

        def end(_: object) -> None:
            if not self._reading.done():
                self._reading.set_result(())

        self._stopping = asyncio.create_task(stop.wait())
        self._stopping.add_done_callback(end)

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        self._ends_with(stop)
        names = self.queue_names()
        acked: asyncio.Future[Any] | None = None
        while not stop.is_set():
            for name, entries in await self._take(names):
                for _, fields in entries:
                    tally.note(_decode(fields[1]).content)
                acked = self._writes.call("XACK", name, "g", *[entry[0] for entry in entries])
        if acked is not None:
            await acked

    async def ask(self, number: int) -> dict[str, Any]:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(await self._dial()))
        message = build(number, "p0")
        reply = self._replies[message["id"]] = asyncio.get_running_loop().create_future()
        self._writes.call("XADD", self.sink, "*", "b", _encode(message))
        content: dict[str, Any] = await reply
        return content

    async def _listen(self, reads: Connection) -> None:
        last = b"0"
        while True:
            found = await reads.call("XREAD", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS", self._mailbox, last) or ()
            for _, entries in found:
                last = entries[-1][0]
                for _, fields in entries:
                    message = _decode(fields[1])
                    self._replies.pop(message.in_reply_to or "").set_result(message.content)

    async def answer(self, stop: asyncio.Event) -> None:
        self._ends_with(stop)
        while not stop.is_set():
            for name, entries in await self._take([self.sink]):
                for id, fields in entries:
                    asked = _decode(fields[1])
                    reply = answer_to(asked.id, asked.content)
                    self._writes.call("XADD", self._mailbox, "*", "b", _encode(reply))
                    self._writes.call("XACK", name, "g", id)

    async def disconnect(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
        self._writes.close()
        self._reads.close()
