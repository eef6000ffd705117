"""Peers by name, and what runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks.plan import REDIS_PEERS
from benchmarks.workload import Peer


def make(name: str) -> Peer:
    """Imports no more than this peer needs."""
    if name.startswith("hivewire"):
        return _ours()[name]()
    return (_on_redis() if name in REDIS_PEERS else _embedded())[name]()


def _embedded() -> dict[str, Callable[[], Peer]]:
    from benchmarks.queue_libraries import LiteQueuePeer, PersistQueuePeer
    from benchmarks.raw_memory import AsyncioQueue, MemDeque
    from benchmarks.raw_sqlite import SqliteWal, SqliteWalNormal

    raw: list[type[Peer]] = [MemDeque, AsyncioQueue, SqliteWal, SqliteWalNormal, LiteQueuePeer, PersistQueuePeer]
    return {kind.name: kind for kind in raw}


def _on_redis() -> dict[str, Callable[[], Peer]]:
    from benchmarks.frameworks import DramatiqRedis, FastStreamRedis, TaskiqRedis
    from benchmarks.raw_redis import RedisAutopipe, RedisPyAsyncio

    raw: list[type[Peer]] = [RedisAutopipe, RedisPyAsyncio, FastStreamRedis, TaskiqRedis, DramatiqRedis]
    return {kind.name: kind for kind in raw}


def _ours() -> dict[str, Callable[[], Peer]]:
    from benchmarks.ours import OnMemory, OnRedis, OnSqlite, OnSqliteNormal

    return {kind.name: kind for kind in (OnMemory, OnRedis, OnSqlite, OnSqliteNormal)}


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop for every peer where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
