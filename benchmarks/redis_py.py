"""redis-py's asyncio client, as most programs use it: its pool, a pipeline where many are sent."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec

from hivewire.bench.raw_redis import BLOCK_MS, COUNT
from hivewire.bench.served import ServedByRedis
from hivewire.bench.workload import Tally, Wire, build, chunks

PIPELINE = 200
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Wire).decode


class RedisPyAsyncio(ServedByRedis):
    name: ClassVar[str] = "redis-py asyncio"
    group = "g"

    async def connect(self, url: str) -> None:
        import redis.asyncio

        self._client = redis.asyncio.Redis.from_url(url, max_connections=200)

    async def send(self, number: int, sender: str) -> None:
        await self._client.xadd(self.queue_of(number), {"b": _encode(build(number, sender))})

    async def send_all(self, numbers: range, sender: str) -> None:
        for chunk in chunks(numbers, PIPELINE):
            pipe = self._client.pipeline(transaction=False)
            for number in chunk:
                pipe.xadd(self.queue_of(number), {"b": _encode(build(number, sender))})
            await pipe.execute()

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        streams: dict[Any, Any] = dict.fromkeys(self.queue_names(), ">")
        while not stop.is_set():
            for name, entries in await self._client.xreadgroup("g", "c", streams, COUNT, BLOCK_MS) or ():
                for _, fields in entries:
                    tally.note(_decode(fields[b"b"]).content)
                await self._client.xack(name, "g", *[id for id, _ in entries])

    async def disconnect(self) -> None:
        await self._client.aclose()
