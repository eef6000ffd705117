"""The one fixture of the conformance suite, for each backend of this repository."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from zlib import crc32

import pytest

pytest.register_assert_rewrite("hivewire.testing.conformance")

from hivewire.testing.conformance.fabric import Fabric  # noqa: E402 -- after the line above
from hivewire.testing.conformance.waiting import SOAK  # noqa: E402
from hivewire.testing.leaks import nothing_left_behind  # noqa: E402
from tests.conformance.backends import FABRICS  # noqa: E402

_EVERY = 3
_PLACES = ("auto", "folder", "sqlite")
_KAFKA_S = 240.0
"""A case joins groups several times, and each takes Kafka seconds."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every case runs on each kind of store. On a cluster, one of three, and on Kafka each with one of the places for
    large contents: all of them with HIVEWIRE_SOAK=1."""
    for item in items:
        if "[kafka" in item.nodeid and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_KAFKA_S))
    if SOAK:
        return
    on_cluster = [item for item in items if "[redis-cluster" in item.nodeid]
    left_out = {item for item in on_cluster if crc32(item.nodeid.encode()) % _EVERY}
    for item in items:
        case, is_variant, place = item.nodeid.rstrip("]").partition("[kafka-")
        if is_variant and place in _PLACES and _PLACES[crc32(case.encode()) % len(_PLACES)] != place:
            left_out.add(item)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=sorted(FABRICS))
async def fabric(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fabric]:
    """One store, alone for this test; nothing of it is left afterwards."""
    async with nothing_left_behind(), FABRICS[request.param](tmp_path) as made:
        yield made
