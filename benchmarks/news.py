"""How one process that owns all shards of many queues on Redis learns what is new, in three ways, in turns; no engine.

python -m benchmarks.news [QUEUES] [MESSAGES] [ROUNDS]

bells    each write also publishes the shard on its queue's channel; the reader listens to all and reads what was named
blocks   connections that each block in one read of 100 of the shards' streams
shared   all queues share 64 streams, and one connection blocks in a read of those
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from hivewire.bench.raw_redis import Connection
from hivewire.coordination.serving import loop_factory
from hivewire.testing.servers import RedisServer

SHARDS, KEYS_A_CALL, SHARED = 8, 100, 64
BODY = b"x" * 443


class Reader:
    """`arrived` is set with each message that was read."""

    def __init__(self, dial: Callable[[], Awaitable[Connection]], streams: Sequence[str]) -> None:
        self.dial = dial
        self.streams = streams
        self.cursors: dict[bytes, bytes] = {}
        self.arrived = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def took(self, found: Any) -> None:
        for name, entries in found or ():
            self.cursors[name] = entries[-1][0]
            self.arrived.set()

    def cursor(self, stream: str) -> bytes:
        return self.cursors.get(stream.encode(), b"0-0")

    async def block(self, streams: Sequence[str]) -> None:
        connection = await self.dial()
        while True:
            cursors = [self.cursor(stream) for stream in streams]
            self.took(await connection.call("XREAD", "COUNT", 100, "BLOCK", 5_000, "STREAMS", *streams, *cursors))


class Bells(Reader):
    async def listen(self) -> None:
        reads, listens = await self.dial(), await self.dial()
        listens.heard = partial(self.heard, reads)  # type: ignore[attr-defined]  # see `Listening`
        channels = sorted({stream.rpartition(":")[0] for stream in self.streams})
        for channel in channels:
            listens.call("SUBSCRIBE", channel)

    def heard(self, reads: Connection, said: Any) -> None:
        if said[0] == b"message":
            stream = f"{said[1].decode()}:{said[2].decode()}"
            asked = reads.call("XREAD", "COUNT", 100, "STREAMS", stream, self.cursor(stream))
            asked.add_done_callback(lambda done: self.took(done.result()))


class Listening(Connection):
    """What comes is handed on, where somebody listens."""

    heard: Callable[[Any], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.heard is None:
            super().data_received(data)
            return
        self._reader.feed(data)
        while (said := self._reader.gets()) is not False:
            self.heard(said)


async def run(way: str, server: RedisServer, queues: int, messages: int) -> tuple[float, float, float, float]:
    """Median and p99 of the time from sending to reading in ms; CPU of this process and of the server, us a message."""
    opened: list[Connection] = []

    async def dial() -> Connection:
        loop = asyncio.get_running_loop()
        connection = (await loop.create_connection(Listening, "127.0.0.1", server.port))[1]
        opened.append(connection)
        return connection

    writes = await dial()
    await writes.call("FLUSHALL")
    streams = [f"{{q{queue}}}:{shard}" for queue in range(queues) for shard in range(SHARDS)]
    if way == "shared":
        streams = [f"shared:{n}" for n in range(SHARED)]
    reader = (Bells if way == "bells" else Reader)(dial, streams)
    if isinstance(reader, Bells):
        await reader.listen()
    else:
        pages = [streams[at : at + KEYS_A_CALL] for at in range(0, len(streams), KEYS_A_CALL)]
        reader.tasks = [asyncio.create_task(reader.block(page)) for page in pages]
    await asyncio.sleep(0.5)
    chance, took = random.Random(1), []
    cpu, used = process_time(), await cpu_s(writes)
    for _ in range(messages):
        stream = chance.choice(streams)
        reader.arrived.clear()
        began = perf_counter()
        stored = writes.call("XADD", stream, "*", "b", BODY)
        if way == "bells":
            writes.call("PUBLISH", *stream.rsplit(":", 1))
        await reader.arrived.wait()
        took.append(perf_counter() - began)
        await stored
    spent, used = process_time() - cpu, await cpu_s(writes) - used
    for task in reader.tasks:
        task.cancel()
    await asyncio.gather(*reader.tasks, return_exceptions=True)
    for connection in opened:
        connection.close()
    ordered = sorted(took)
    p99 = ordered[int(0.99 * len(ordered))]
    return statistics.median(took) * 1e3, p99 * 1e3, spent / messages * 1e6, used / messages * 1e6


async def cpu_s(connection: Connection) -> float:
    told = (await connection.call("INFO", "cpu")).decode()
    parts = dict(line.split(":") for line in told.splitlines() if ":" in line)
    return float(parts["used_cpu_sys"]) + float(parts["used_cpu_user"])


def main(queues: int = 1_000, messages: int = 2_000, rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory(prefix="news-") as folder:
        server = RedisServer(Path(folder) / "redis", "--appendfsync", "everysec")
        server.start()
        try:
            told: dict[str, list[tuple[float, float, float, float]]] = {"bells": [], "blocks": [], "shared": []}
            for _ in range(rounds):
                for way, figures in told.items():
                    with asyncio.Runner(loop_factory=loop_factory()) as runner:
                        figures.append(runner.run(run(way, server, queues, messages)))
        finally:
            server.kill()
    print(f"{queues:,} queues of {SHARDS} shards, {messages:,} messages one by one, median of {rounds} rounds")
    for way, figures in told.items():
        p50, p99, client, used = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{way:7} p50 {p50:.3f} ms  p99 {p99:.2f} ms  client {client:.0f} us  server {used:.0f} us a message")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
