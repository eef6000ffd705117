"""Each peer of the benchmark carries each workload whole, so that a figure is never one of a broken run."""

from __future__ import annotations

import pytest

from hivewire.bench.one import run
from hivewire.bench.peers import PEERS
from hivewire.bench.plan import entries
from tests.needed import needed

CASES = [(entry.peer, entry.workload) for entry in entries(("memory", "sqlite", "redis"))]


@pytest.mark.parametrize(("peer", "workload"), CASES)
def test_a_peer_loses_and_doubles_nothing(peer: str, workload: str) -> None:
    with needed():
        figures = run(PEERS[peer], workload, 200)
    assert (figures.lost, figures.duplicates) == (0, 0)
    assert figures.rate > 0
    assert 0 < figures.p50_ms <= figures.p95_ms <= figures.p99_ms <= figures.p999_ms
