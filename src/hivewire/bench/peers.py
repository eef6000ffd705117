"""Peers by name. A child process is given the address, `module:Class`, and imports that one alone."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from hivewire.bench.workload import Peer

PEERS: Final = {
    "mem-deque": "hivewire.bench.raw_memory:MemDeque",
    "asyncio.Queue": "hivewire.bench.raw_memory:AsyncioQueue",
    "sqlite-wal": "hivewire.bench.raw_sqlite:SqliteWal",
    "sqlite-wal NORMAL": "hivewire.bench.raw_sqlite:SqliteWalNormal",
    "redis-autopipe": "hivewire.bench.raw_redis:RedisAutopipe",
    "kafka-batched": "hivewire.bench.raw_kafka:KafkaBatched",
    "confluent-kafka raw": "hivewire.bench.raw_kafka:ConfluentRaw",
    "hivewire memory": "hivewire.bench.ours:OnMemory",
    "hivewire sqlite": "hivewire.bench.ours:OnSqlite",
    "hivewire sqlite NORMAL": "hivewire.bench.ours:OnSqliteNormal",
    "hivewire redis": "hivewire.bench.ours:OnRedis",
    "hivewire kafka": "hivewire.bench.ours:OnKafka",
}


def make(address: str) -> Peer:
    """Of `module:Class`."""
    module, _, name = address.partition(":")
    peer: Peer = getattr(import_module(module), name)()
    return peer


def address_of(peer: Peer) -> str:
    return f"{type(peer).__module__}:{type(peer).__qualname__}"
