"""Which peers run which workloads, and with how many messages: enough for about half a second each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from hivewire.bench.workload import WORKLOADS

BACKENDS: Final = ("memory", "sqlite", "redis", "kafka")
COUNTS: Final = {
    "memory": {"W1": 40_000, "W2": 60_000, "W3a": 40_000, "W3b": 40_000, "W4": 2_000, "W5": 60_000, "W6": 10_000},
    "sqlite": {"W1": 1_500, "W2": 40_000, "W3a": 6_000, "W3b": 12_000, "W4": 2_000, "W5": 30_000, "W6": 1_000},
    "redis": {"W1": 3_000, "W2": 30_000, "W3a": 15_000, "W3b": 20_000, "W4": 2_000, "W5": 30_000, "W6": 1_000},
    "kafka": {"W1": 1_000, "W2": 40_000, "W3a": 6_000, "W3b": 10_000, "W4": 2_000, "W5": 10_000, "W6": 500},
}
"""Messages of each run, before `scale`."""
FASTER: Final = {"mem-deque": 5, "asyncio.Queue": 3}
"""These get so many times more messages in the workloads without a clock, so that a run takes as long."""
REFERENCES: Final = {
    "hivewire memory": "mem-deque",
    "hivewire sqlite": "sqlite-wal",
    "hivewire sqlite NORMAL": "sqlite-wal NORMAL",
    "hivewire redis": "redis-autopipe",
    "hivewire kafka": "kafka-batched",
}
"""The raw loop that a peer of ours is held against."""
_NORMAL: Final = ("W1", "W2", "W5")
_QUEUE: Final = ("W1", "W2", "W3a", "W3b")


class Entry(NamedTuple):
    backend: str
    peer: str
    workload: str
    messages: int


def entries(backends: Sequence[str], workloads: Sequence[str] = tuple(WORKLOADS)) -> list[Entry]:
    """In order of workload, so that what is compared runs side by side."""
    return [
        Entry(backend, peer, workload, COUNTS[backend][workload] * (1 if workload == "W4" else FASTER.get(peer, 1)))
        for backend in backends
        for workload in COUNTS[backend]
        if workload in workloads
        for peer in _peers(backend, workload)
    ]


def _peers(backend: str, workload: str) -> Iterator[str]:
    if backend == "memory":
        yield from ("mem-deque", "asyncio.Queue") if workload in _QUEUE else ("mem-deque",)
        yield "hivewire memory"
    elif backend == "sqlite":
        yield from ("sqlite-wal", "hivewire sqlite")
        if workload in _NORMAL:
            yield from ("sqlite-wal NORMAL", "hivewire sqlite NORMAL")
    elif backend == "redis":
        yield from ("redis-autopipe", "hivewire redis")
    else:
        yield "kafka-batched"
        if workload == "W2":
            yield "confluent-kafka raw"
        yield "hivewire kafka"
