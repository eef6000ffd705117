"""A change of owner while handlers run: no second copy, nobody waits, the order of a key holds. With real processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from hivewire.backends.kafka.backend import KafkaBackend
from hivewire.backends.kafka.elsewhere import moved
from hivewire.delivery import Delivery
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.journal import Journal
from hivewire.testing.conformance.scenario import empty, number, send_numbered, serving, task
from hivewire.testing.conformance.waiting import count, eventually, until, until_true
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.kafka_fabric import KafkaFabric

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(180)]

KEYS = [f"k{n}" for n in range(12)]
"""More than partitions: each of the three has some."""


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[KafkaFabric]:
    made = KafkaFabric(tmp_path)
    async with nothing_left_behind(), made:
        yield made


def running(journal: Journal, agent: str) -> set[str]:
    ended = {entry.id for entry in journal.ends(agent)}
    return {entry.id for entry in journal.starts(agent)} - ended


async def start_long(fabric: Fabric, agent: str, seconds: float) -> None:
    """A handler that lasts in each key, with more of the key behind it."""
    for key in KEYS:
        await fabric.protocol.send(task(agent, 0, ("sleep", seconds), key=key))
    await until(lambda: len(fabric.journal.starts(agent)) == len(KEYS), "all of them run", 30)
    for n in range(1, 4):
        for key in KEYS:
            await fabric.protocol.send(task(agent, n, key=key))


def in_order(journal: Journal, agent: str, each: int) -> None:
    first: dict[str, list[int]] = {key: [] for key in KEYS}
    for entry in journal.starts(agent):
        if entry.n not in first[entry.key]:
            first[entry.key].append(entry.n)
    assert first == {key: list(range(each)) for key in KEYS}


async def test_who_joins_waits_for_no_handler_and_starts_no_second_copy(fabric: KafkaFabric) -> None:
    await fabric.worker("long", concurrency=len(KEYS))
    await start_long(fabric, "long", 15.0)
    second = await fabric.worker("long", concurrency=len(KEYS))
    # What is sent now to keys that nobody holds is handled by the second, though all of the first's handlers last.
    fresh = [f"fresh{n}" for n in range(12)]

    async def served() -> None:
        await send_numbered(fabric.protocol, "long", 1, keys=fresh)
        await until(lambda: fabric.journal.entries("start", worker=second.name), "the second one has work", 10)

    await served()

    async def in_flight() -> int:
        return (await fabric.protocol.depth("long")).in_flight

    # Those that moved run where their partition is no longer, and are in flight all the same.
    await eventually(in_flight, len(KEYS), 8)
    assert len(running(fabric.journal, "long")) == len(KEYS)
    await empty(fabric.protocol, "long", within_s=60)
    starts = Counter(entry.id for entry in fabric.journal.starts("long"))
    assert set(starts.values()) == {1}
    assert len(starts) == 4 * len(KEYS) + len(fresh)


async def test_what_was_finished_elsewhere_is_not_handled_again_when_it_is_sent_again(fabric: KafkaFabric) -> None:
    await fabric.worker("twin", concurrency=len(KEYS))
    messages = [task("twin", 0, ("sleep", 10.0), key=key) for key in KEYS]
    await fabric.protocol.send_many(messages)
    await until(lambda: len(fabric.journal.starts("twin")) == len(KEYS), "all of them run", 30)
    second = await fabric.worker("twin", concurrency=len(KEYS))
    await send_numbered(fabric.protocol, "twin", 1, keys=[f"fresh{n}" for n in range(12)])
    await until(lambda: fabric.journal.entries("start", worker=second.name), "the second one has work", 9)
    assert {message.id for message in messages} <= running(fabric.journal, "twin")
    await fabric.protocol.send_many(messages)
    await empty(fabric.protocol, "twin", within_s=60)
    assert set(Counter(entry.id for entry in fabric.journal.starts("twin")).values()) == {1}


async def test_what_moved_is_remembered_until_its_space_is_given_back(fabric: KafkaFabric) -> None:
    """Not for ever: a pool that only grows is read by everybody who takes a partition over."""
    members = [await fabric.member(dedup_window_s=0.2, idempotency_window_s=0.2) for _ in range(2)]
    begun, go_on = Counter[str](), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if number(delivery):  # the first of each key are finished before: what moves is not all that there ever was
            begun[delivery.message.id] += 1
            await go_on.wait()

    await send_numbered(fabric.protocol, "past", 2, keys=KEYS)
    async with serving(members[0], "past", handle, concurrency=len(KEYS)):
        kafka = members[1].backend
        assert isinstance(kafka, KafkaBackend)
        await until(lambda: len(begun) == len(KEYS), "all of them run", 30)
        async with serving(members[1], "past", handle, concurrency=len(KEYS)):

            async def held() -> int:
                pool = await moved(kafka, "past")
                return 0 if pool is None else sum(known.holder is not None for known in pool.known.values())

            await until_true(held, "handlers outlive their partition", 30)
            go_on.set()
            await empty(fabric.protocol, "past", within_s=30)
            assert set(begun.values()) == {1}

            async def remembered() -> int:
                pool = await moved(kafka, "past")
                assert pool is not None
                return sum(len(pool.ahead(shard)) for shard in range(3)) + len(pool.known)

            assert await remembered()

            async def forgotten() -> bool:
                for member in members:
                    await member.cleanup(0.2)
                return not await remembered()

            await send_numbered(fabric.protocol, "past", 1, keys=KEYS)
            await empty(fabric.protocol, "past", within_s=30)
            await until_true(forgotten, "it is forgotten", 30)


async def test_a_handler_that_moved_house_and_dies_is_done_again_in_order(fabric: KafkaFabric) -> None:
    first = await fabric.worker("long", concurrency=len(KEYS))
    await start_long(fabric, "long", 60.0)
    second = await fabric.worker("long", concurrency=len(KEYS))
    await send_numbered(fabric.protocol, "long", 1, keys=[f"fresh{n}" for n in range(12)])
    await until(lambda: fabric.journal.entries("start", worker=second.name), "the second one has work", 15)
    mine = {entry.id for entry in fabric.journal.entries("start", worker=second.name)}
    assert not mine & {entry.id for entry in fabric.journal.entries("start", worker=first.name)}
    killed_at = fabric.now()
    first.kill()
    again = {entry.id for entry in fabric.journal.entries("start", worker=first.name) if entry.n == 0}
    await until(
        lambda: again <= {entry.id for entry in fabric.journal.entries("start", worker=second.name)},
        "all that ran is taken over",
        30,
    )
    over = [entry for entry in fabric.journal.entries("start", worker=second.name) if entry.id in again]
    assert max(entry.at for entry in over) - killed_at <= fabric.takeover_s
    assert {entry.attempt for entry in over} == {2}


async def test_rolling_restarts_repeat_nothing_and_keep_the_order(fabric: KafkaFabric) -> None:
    workers = [await fabric.worker("roll", concurrency=6) for _ in range(2)]
    each = count(25, 300)
    await send_numbered(fabric.protocol, "roll", each, keys=KEYS, steps=[("sleep", 0.1)])
    for _ in range(count(2, 10)):
        ended = len(fabric.journal.ends("roll"))
        await until(lambda ended=ended: len(fabric.journal.ends("roll")) > ended + 10, "work goes on", 30)  # type: ignore[misc]
        workers.append(await fabric.worker("roll", concurrency=6))
        workers[0].terminate()
        assert await workers.pop(0).ended() == 0
    await empty(fabric.protocol, "roll", within_s=90)
    assert set(Counter(entry.id for entry in fabric.journal.starts("roll")).values()) == {1}
    in_order(fabric.journal, "roll", each)


async def members(fabric: KafkaFabric) -> list[int]:
    """Of the group: how many partitions each of them has."""
    group = fabric.url.rpartition("group_id=")[2]
    client = AdminClient({"bootstrap.servers": fabric.broker.address})
    found = await asyncio.wrap_future(client.describe_consumer_groups([group])[group])
    return sorted(len(member.assignment.topic_partitions) for member in found.members)


async def test_who_leaves_is_waited_for_by_nobody(fabric: KafkaFabric) -> None:
    """One of four has no partition; the group must hear of its end, too, or all wait for its session."""
    workers = await asyncio.gather(*(fabric.worker("spare", concurrency=2) for _ in range(4)))
    await eventually(lambda: members(fabric), [0, 1, 1, 1], 30)
    for worker in workers:
        worker.terminate()
    assert [await worker.ended() for worker in workers] == [0] * 4
    assert await members(fabric) == []


@pytest.mark.parametrize("handled", [40, 120])
async def test_all_stopped_while_the_group_still_shares_out_repeat_nothing(fabric: KafkaFabric, handled: int) -> None:
    await send_numbered(fabric.protocol, "stop", 60, keys=KEYS, steps=[("sleep", 0.02)])
    workers = await asyncio.gather(*(fabric.worker("stop", concurrency=6) for _ in range(3)))
    await until(lambda: len(fabric.journal.ends("stop")) >= handled, "they work", 30)
    for worker in workers:
        worker.terminate()
    assert [await worker.ended() for worker in workers] == [0] * 3
    await fabric.worker("stop", concurrency=20)
    await empty(fabric.protocol, "stop", within_s=60)
    assert set(Counter(entry.id for entry in fabric.journal.starts("stop")).values()) == {1}
    in_order(fabric.journal, "stop", 60)
