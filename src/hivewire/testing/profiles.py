"""The profiles: simulated stores that behave like each kind of backend, for the seeded driver."""

from __future__ import annotations

from random import Random
from typing import Final

from hivewire.backend import Backend
from hivewire.testing.profiles_faults import Faults, Wire
from hivewire.testing.profiles_kafka import KafkaBackend, KafkaWorld
from hivewire.testing.profiles_redis import RedisBackend, RedisWorld
from hivewire.testing.profiles_sql import SqlBackend, SqlWorld
from hivewire.testing.profiles_world import World

PROFILES: Final[dict[str, type[World]]] = {"sql": SqlWorld, "redis": RedisWorld, "kafka": KafkaWorld}


def make_world(profile: str, faults: Faults, chance: Random) -> World:
    """The server of one run. Call it on a virtual loop."""
    return PROFILES[profile](faults, chance)


def connect(world: World, wire: Wire) -> Backend:
    """One member's backend on that server."""
    if isinstance(world, SqlWorld):
        return SqlBackend(world, wire)
    if isinstance(world, RedisWorld):
        return RedisBackend(world, wire)
    assert isinstance(world, KafkaWorld)
    return KafkaBackend(world, wire)
