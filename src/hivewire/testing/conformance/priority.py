"""Priority: the more urgent is sooner among what waits, and the least urgent is never left waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from hivewire.backend import Mode
from hivewire.delivery import Delivery
from hivewire.message import Message
from hivewire.rules.priority import LEVELS, weight
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import serving, task
from hivewire.testing.conformance.waiting import until

MODES = pytest.mark.parametrize("mode", ["ordered", "competing"])


async def _handled(fabric: Fabric, agent: str, wanted: int) -> list[Message]:
    """One at a time, in the order in which they are begun, until there were so many."""
    seen: list[Message] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.message)
        await asyncio.sleep(0.001)

    async with serving(fabric.protocol, agent, handle, concurrency=1):
        await until(lambda: len(seen) >= wanted, f"{wanted} handled", 30)
    return seen[:wanted]


async def _send(fabric: Fabric, agent: str, priorities: Sequence[int]) -> None:
    batch = [task(agent, n, key=f"k{n}", priority=priority) for n, priority in enumerate(priorities)]
    for start in range(0, len(batch), 500):
        await fabric.protocol.send_many(batch[start : start + 500])


@MODES
async def test_each_priority_has_at_least_its_share(fabric: Fabric, mode: Mode) -> None:
    """Much of each waits. A level has at least the share that it has when all ten levels wait."""
    agent = f"share-{mode}"
    await fabric.protocol.subscribe(agent, mode=mode)
    await _send(fabric, agent, [10, 8, 5, 1] * 200)
    taken = await _handled(fabric, agent, 240)
    had = Counter(message.priority for message in taken)
    total = sum(map(weight, LEVELS))
    for priority in (10, 8, 5, 1):
        assert had[priority] >= max(1, int(0.5 * 240 * weight(priority) / total)), had
    assert had[10] > had[8] > had[1], had
    assert had[10] > 0.4 * 240, had


@MODES
async def test_what_is_not_urgent_is_handled_while_urgent_work_never_ends(fabric: Fabric, mode: Mode) -> None:
    agent = f"flood-{mode}"
    await fabric.protocol.subscribe(agent, mode=mode)
    await _send(fabric, agent, [1])
    await _send(fabric, agent, [10] * 100)
    seen: list[int] = []
    sent = 100

    async def handle(delivery: Delivery) -> None:
        nonlocal sent
        seen.append(delivery.message.priority)
        if len(seen) < 2_000:  # for each that is handled, another comes
            sent += 1
            await fabric.protocol.send(task(agent, sent, key=f"m{sent}", priority=10))

    async with serving(fabric.protocol, agent, handle, concurrency=1):
        await until(lambda: 1 in seen, "the one that is not urgent", 30)
    assert seen.index(1) <= 1_200, "it waited until all urgent work was done"


@MODES
async def test_an_urgent_one_overtakes_a_crowd(fabric: Fabric, mode: Mode) -> None:
    agent = f"late-{mode}"
    await fabric.protocol.subscribe(agent, mode=mode)
    await _send(fabric, agent, [1] * 300)
    await fabric.protocol.send(task(agent, 999, key="urgent", priority=10))
    taken = await _handled(fabric, agent, 301)
    place = [message.priority for message in taken].index(10)
    # In an ordered queue of a store with shards, it overtakes what a member has taken ahead.
    assert place <= 30, place


async def test_in_one_key_the_order_stays(fabric: Fabric) -> None:
    batch = [task("one", n, key="k", priority=(1, 10, 5)[n % 3]) for n in range(60)]
    await fabric.protocol.send_many(batch)
    assert [message.content["n"] for message in await _handled(fabric, "one", 60)] == list(range(60))
