"""Each peer of the benchmark carries each workload whole, so that a figure is never one of a broken run."""

from __future__ import annotations

import os

import pytest

from benchmarks.one import run
from benchmarks.plan import BACKENDS, FRAMEWORKS, entries
from hivewire.testing.servers import ServerMissing

LIBRARIES = ("litequeue", "persist-queue", "redis-py asyncio", *FRAMEWORKS)  # installed by `make bench` alone
CASES = [(entry.peer, entry.workload) for entry in entries(BACKENDS) if entry.peer not in LIBRARIES]


@pytest.mark.parametrize(("peer", "workload"), CASES)
def test_a_peer_loses_and_doubles_nothing(peer: str, workload: str) -> None:
    try:
        figures = run(peer, workload, 600)
    except ServerMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    assert (figures.lost, figures.duplicates) == (0, 0)
    assert figures.rate > 0
    assert figures.p50_ms <= figures.p99_ms
