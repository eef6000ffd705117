"""Competing queues on Kafka: the log of claims, its past, and a broker that is away for longer than a lease."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivewire.backends.kafka import KafkaBackend
from hivewire.delivery import Delivery
from hivewire.protocol import Protocol
from hivewire.testing.conformance.scenario import counts, empty, number, serving, take, take_one, task
from hivewire.testing.conformance.waiting import until, until_true
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.kafka_fabric import KafkaFabric

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[KafkaFabric]:
    made = KafkaFabric(tmp_path)
    async with nothing_left_behind(), made:
        await made.protocol.subscribe("pool", mode="competing")
        yield made


def backend_of(protocol: Protocol) -> KafkaBackend:
    backend = getattr(protocol, "backend")  # noqa: B009 -- of the engine, not of the contract
    assert isinstance(backend, KafkaBackend)
    return backend


async def test_who_comes_after_the_past_was_deleted_knows_what_is_finished(fabric: KafkaFabric) -> None:
    protocol = fabric.protocol
    await protocol.send_many([task("pool", n) for n in range(40)])
    await take(protocol, "pool", 30)
    held = await take_one(protocol, "pool")
    backend = backend_of(protocol)
    log = await backend.claims.log_of("pool")
    await log.keep()
    place = (log.topic, log.partition)
    assert (await backend.admin.ends([place], first=True))[place] > 0
    other = await fabric.member()
    assert counts(await other.depth("pool")) == (9, 1, 0, 0)
    left = await take(other, "pool", 9)
    assert len({delivery.message.id for delivery in (*left, held)}) == 10
    await held.ack()
    await empty(other, "pool")


async def test_nobody_is_accused_because_the_broker_was_away(fabric: KafkaFabric) -> None:
    """What was held when a long outage began comes again; all else is handled once, and nothing is lost."""
    seen = Counter[int]()

    async def handle(delivery: Delivery) -> None:
        seen[number(delivery)] += 1
        await asyncio.sleep(0.01)

    other = await fabric.member()
    async with serving(fabric.protocol, "pool", handle), serving(other, "pool", handle):
        await fabric.protocol.send_many([task("pool", n) for n in range(200)])
        await until(lambda: len(seen) >= 200, "all is handled")
        async with fabric.outage():
            await asyncio.sleep(fabric.lease_s + 1)  # what is tested is that time passes
        await until_true(lambda: _is_up(fabric), "the broker is back", 30)
        await fabric.protocol.send_many([task("pool", n) for n in range(200, 400)])
        await empty(fabric.protocol, "pool", within_s=60)
    assert set(seen) == set(range(400))
    assert {seen[n] for n in range(200, 400)} == {1}


async def _is_up(fabric: KafkaFabric) -> bool:
    return (await fabric.protocol.health()).ok
