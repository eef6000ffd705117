"""Every store against memory: one seeded program, the same observable results.

HIVEWIRE_SOAK=1 pytest tests/conformance/test_differential.py       # 2,000 operations a seed
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hivewire.delivery import Delivery
from hivewire.testing.conformance.waiting import SOAK, count
from hivewire.testing.differential import check, compare, memory_store
from hivewire.testing.differential_program import draw
from hivewire.testing.differential_side import Side
from tests.conformance.backends import FABRICS

Handle = Callable[[Delivery], Awaitable[None]]
SEEDS = range(count(3, 10))
CASES = [
    (backend, seed)
    for backend in sorted(FABRICS)
    for seed in SEEDS
    if SOAK or backend != "kafka" or not seed  # an operation costs ten times as much there
]
OPERATIONS = count(200, 2_000)


@pytest.mark.timeout(7_200 if SOAK else 120)
@pytest.mark.parametrize(("backend", "seed"), CASES)
async def test_the_same_is_seen_as_on_memory(backend: str, seed: int, tmp_path: Path) -> None:
    made = 0

    @asynccontextmanager
    async def store() -> AsyncIterator[str]:
        nonlocal made
        made += 1
        folder = tmp_path / str(made)
        folder.mkdir()
        async with FABRICS[backend](folder) as fabric:
            yield fabric.url

    operations = OPERATIONS if SOAK or backend != "kafka" else OPERATIONS // 2
    difference = await check(seed, operations, store)
    assert difference is None, difference


async def test_a_seed_always_gives_the_same_program() -> None:
    assert draw(5, 300) == draw(5, 300)
    assert draw(5, 300) != draw(6, 300)


async def test_a_store_that_differs_is_caught_and_the_program_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message of a hundred comes twice."""
    take = Side._take

    async def doubling(self: Side, agent: str, model: object, wanted: int, handle: Handle) -> object:
        async def twice(delivery: Delivery) -> None:
            await handle(delivery)
            if model is not None and delivery.message.content["n"] % 100 == 7:
                await handle(delivery)

        return await take(self, agent, model, wanted, twice)

    monkeypatch.setattr(Side, "_take", doubling)
    found = await check(1, 300, memory_store)
    assert found is not None
    assert found.startswith("seed 1, 300 operations: operation ")
    assert len(found.partition("smallest:\n")[2].splitlines()) <= 4
    assert await compare(draw(1, 20)[:1], "memory://differential-alone") is None
