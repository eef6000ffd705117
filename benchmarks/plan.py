"""The package's plan, with what people install beside it in the workload where each is at its best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks.peers import FRAMEWORKS
from hivewire.bench import plan
from hivewire.bench.plan import COUNTS, Entry

BACKENDS: Final = ("memory", "sqlite", "redis", "kafka")
_FEWER: Final = {"redis-py asyncio": 6, **dict.fromkeys(FRAMEWORKS, 20)}
"""These are slower and get fewer messages."""
_AIOKAFKA: Final = ("W2", "W3a", "W3b")
"""W2 shows that the raw loop is a good one, the others are its best."""


def entries(backends: Sequence[str]) -> list[Entry]:
    """In order of workload, so that what is compared runs side by side."""
    found: list[Entry] = []
    for entry in plan.entries(backends):
        found.append(entry)
        if entry.peer == "hivewire sqlite" and entry.workload == "W2":
            found += [Entry("sqlite", "litequeue", "W2", 2_000), Entry("sqlite", "persist-queue", "W2", 1_000)]
        if entry.peer == "hivewire kafka" and entry.workload in _AIOKAFKA:
            found.append(Entry("kafka", "aiokafka", entry.workload, entry.messages))
        if entry.peer == "hivewire kafka" and entry.workload == "W3b":
            found.append(Entry("kafka", "FastStream Kafka", "W3b", entry.messages // 10))
        if entry.peer == "hivewire redis" and entry.workload == "W3b":
            each = COUNTS["redis"]["W3b"]
            found += [Entry("redis", peer, "W3b", each // share) for peer, share in _FEWER.items()]
    return found
