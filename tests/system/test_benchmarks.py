"""Each peer of the benchmark carries each workload whole, so that a figure is never one of a broken run."""

from __future__ import annotations

import pytest

from benchmarks.one import run
from benchmarks.plan import entries

LIBRARIES = ("litequeue", "persist-queue")  # installed by `make bench` alone
CASES = [(entry.peer, entry.workload) for entry in entries(("memory", "sqlite")) if entry.peer not in LIBRARIES]


@pytest.mark.parametrize(("peer", "workload"), CASES)
def test_a_peer_loses_and_doubles_nothing(peer: str, workload: str) -> None:
    figures = run(peer, workload, 600)
    assert (figures.lost, figures.duplicates) == (0, 0)
    assert figures.rate > 0
    assert figures.p50_ms <= figures.p99_ms
