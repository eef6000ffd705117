"""Which peers run which workloads, and with how many messages: enough for about a second each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

BACKENDS: Final = ("memory", "sqlite", "redis")


class Entry(NamedTuple):
    peer: str
    workload: str
    messages: int


_MEMORY = ("mem-deque", "asyncio.Queue", "hivewire memory")
_SQLITE = ("sqlite-wal", "hivewire sqlite")
_NORMAL = ("sqlite-wal NORMAL", "hivewire sqlite NORMAL")
FRAMEWORKS: Final = ("FastStream", "Taskiq", "Dramatiq")
REDIS_PEERS: Final = ("redis-autopipe", "redis-py asyncio", *FRAMEWORKS)
_COUNTS: Final = {
    "memory": {"W1": 60_000, "W2": 200_000, "W3a": 100_000, "W3b": 100_000},
    "sqlite": {"W1": 3_000, "W2": 50_000, "W3a": 10_000, "W3b": 20_000},
    "redis": {"W1": 5_000, "W2": 50_000, "W3a": 30_000, "W3b": 50_000, "W4": 5_000, "W5": 50_000, "W6": 2_000},
}
_SLOWER: Final = {"redis-py asyncio": 8, **dict.fromkeys(FRAMEWORKS, 30)}
"""These get fewer messages, so that a run takes as long."""


def entries(backends: Sequence[str]) -> list[Entry]:
    """In order of workload, so that what is compared runs side by side."""
    plan: list[Entry] = []
    for backend in backends:
        for workload, count in _COUNTS[backend].items():
            if backend == "redis":
                plan += _redis(workload, count)
                continue
            if backend == "memory":
                plan += [Entry(peer, workload, count) for peer in _MEMORY]
                continue
            plan += [Entry(peer, workload, count) for peer in _SQLITE]
            if workload in ("W1", "W2"):
                plan += [Entry(peer, workload, count) for peer in _NORMAL]
            if workload == "W2":
                plan += [Entry("litequeue", workload, 4_000), Entry("persist-queue", workload, 1_500)]
    return plan


def _redis(workload: str, count: int) -> list[Entry]:
    peers = [Entry("redis-autopipe", workload, count), Entry("hivewire redis", workload, count)]
    if workload == "W3b":
        peers += [Entry(peer, workload, count // share) for peer, share in _SLOWER.items()]
    return peers
