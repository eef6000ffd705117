"""Questions to the Redis server of a fabric."""

from __future__ import annotations

from hivewire.backends.redis.address import Reply
from hivewire.backends.redis.opening import new_link
from hivewire.settings import RedisSettings
from tests.conformance.backends import RedisFabric


async def ask(redis: RedisFabric, *command: str | int) -> Reply:
    """As another program would, that may do anything."""
    link = new_link(RedisSettings(addr=f"127.0.0.1:{redis.server.port}"))
    try:
        return await link.call(*command)
    finally:
        await link.close()
