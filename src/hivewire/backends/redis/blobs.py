"""Large messages beside the streams: one key each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hivewire.backends.redis.keys import ROOT
from hivewire.backends.redis.link import Link
from hivewire.blobs import BlobStore

BLOB = f"{ROOT}blob:"
NAMES = f"{ROOT}blobs"


class RedisBlobs(BlobStore):
    """On the same server as the queues, and as durable."""

    def __init__(self, link: Callable[[], Link]) -> None:
        self._link = link

    async def put(self, name: str, body: bytes) -> None:
        await self._link().call("SADD", NAMES, name)
        await self._link().call("SET", BLOB + name, body)

    async def get(self, name: str) -> bytes | None:
        found: bytes | None = await self._link().call("GET", BLOB + name)
        return found

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            await self._link().call("DEL", BLOB + name)
            await self._link().call("SREM", NAMES, name)

    async def names(self) -> list[str]:
        return [name.decode() for name in await self._link().call("SMEMBERS", NAMES)]
