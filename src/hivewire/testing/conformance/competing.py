"""Competing queues: any idle worker takes the next message, whatever its key."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import Closed, HivewireError, LeaseLost
from hivewire.message import Priority
from hivewire.protocol import Protocol
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    empty,
    holds,
    nothing_for,
    number,
    one_letter,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, eventually, until
from hivewire.testing.conformance.workers import ProcessWorker


@pytest.fixture
async def pool(fabric: Fabric) -> str:
    """The name of a competing queue."""
    await fabric.protocol.subscribe("pool", mode="competing")
    return "pool"


def hands_out_one_by_one(fabric: Fabric) -> bool:
    """Else a member owns parts of the queue: what is in them waits for it."""
    return fabric.features.leases_lanes("pool", competing=True)


def knows_what_runs(fabric: Fabric) -> bool:
    """And when what waits is due, what is a duplicate, and how often a handler was started. A store that lends
    records knows how often it did."""
    return not fabric.features.lends_competing


async def test_an_idle_worker_takes_what_a_busy_one_does_not(fabric: Fabric, pool: str) -> None:
    """One worker is kept by a handler for as long as the test lasts; the other handles all the rest."""
    release = asyncio.Event()
    seen: list[int] = []

    async def stuck(delivery: Delivery) -> None:
        seen.append(number(delivery))
        await release.wait()

    other = await fabric.member()
    async with serving(fabric.protocol, pool, stuck, concurrency=1):
        await fabric.protocol.send(task(pool, 0))
        await until(lambda: seen == [0], "one is kept")

        async def handle(delivery: Delivery) -> None:
            seen.append(number(delivery))

        async with serving(other, pool, handle, concurrency=1):
            await send_numbered(fabric.protocol, pool, 30)
            if hands_out_one_by_one(fabric):
                await until(lambda: len(seen) == 31, "the idle one handles the rest")
            release.set()
            await empty(fabric.protocol, pool)


async def test_what_was_taken_ahead_goes_to_an_idle_worker(fabric: Fabric, pool: str) -> None:
    """Quick handlers take many ahead; then one lasts, and what it was taken with must not wait for it."""
    release, lasts, seen = asyncio.Event(), asyncio.Event(), Counter[int]()

    async def quick(delivery: Delivery) -> None:
        if number(delivery) == 300:
            lasts.set()
            await release.wait()
        seen[number(delivery)] += 1

    async with serving(fabric.protocol, pool, quick, concurrency=1):
        await fabric.protocol.send_many([task(pool, n) for n in range(600)])
        await until(lasts.is_set, "it comes to the one that lasts")
        other = await fabric.member()
        async with serving(other, pool, quick, concurrency=1):
            if hands_out_one_by_one(fabric):
                within_s = 5 if knows_what_runs(fabric) else 15  # who joins a share group waits for five
                await until(lambda: seen.total() == 599, "the idle one handles the rest", within_s)
            release.set()
            await empty(fabric.protocol, pool)
    assert set(seen) == set(range(600))
    assert set(seen.values()) == {1}


@pytest.mark.slow
async def test_a_handler_longer_than_the_lease_runs_once(fabric: Fabric, pool: str) -> None:
    for _ in range(2):
        await fabric.worker(pool)
    await fabric.protocol.send(task(pool, 1, ("sleep", 2.5 * fabric.lease_s)))
    await empty(fabric.protocol, pool, within_s=30)
    assert [(entry.n, entry.attempt) for entry in fabric.journal.starts(pool)] == [(1, 1)]


@pytest.mark.slow
async def test_a_dead_workers_messages_are_taken_over_in_time(fabric: Fabric, pool: str) -> None:
    first = await fabric.worker(pool, concurrency=4)
    await fabric.protocol.send_many([task(pool, n, ("sleep", 1.5)) for n in range(12)])
    await until(lambda: len(fabric.journal.starts(pool)) == 4, "it runs")
    second = await fabric.worker(pool, concurrency=12)
    killed_at = fabric.now()
    first.kill()
    held = {entry.id for entry in fabric.journal.starts(pool)} - {entry.id for entry in fabric.journal.ends(pool)}
    assert held
    await empty(fabric.protocol, pool, within_s=30)
    taken_over = [entry for entry in fabric.journal.entries("start", worker=second.name) if entry.id in held]
    assert {entry.id for entry in taken_over} == held
    assert max(entry.at for entry in taken_over) - killed_at <= fabric.takeover_s


@pytest.mark.slow
async def test_only_starts_count_and_a_killer_takes_nobody_with_it(fabric: Fabric, pool: str) -> None:
    """A message that kills its process becomes a dead letter; those that were with the process, taken and never
    started or running beside it, do not."""
    settings = {"max_attempts": 2 if knows_what_runs(fabric) else 4}
    worker = await fabric.worker(pool, concurrency=2, settings=settings)
    await fabric.protocol.send_many([task(pool, n, ("sleep", 0.01)) for n in range(1, 30)])
    await fabric.protocol.send(task(pool, 0, ("sleep", 0.1), ("die", 99)))
    await fabric.protocol.send_many([task(pool, n, ("sleep", 0.01)) for n in range(30, 60)])
    deaths = 0
    while (await fabric.protocol.depth(pool)).dead == 0:
        if worker.gone:
            deaths += 1
            assert deaths <= 6, "the killer goes on"
            worker = await fabric.worker(pool, concurrency=2, settings=settings)
        await asyncio.sleep(0.05)
    await empty(fabric.protocol, pool, dead=1, within_s=30)
    letter = await one_letter(fabric.protocol, pool)
    assert letter.message is not None
    assert (letter.message.content["n"], letter.reason) == (0, "crashed")
    assert {entry.n for entry in fabric.journal.ends(pool) if entry.note == "done"} == set(range(1, 60))


async def test_what_waits_for_another_attempt_goes_to_whoever_is_idle(fabric: Fabric, pool: str) -> None:
    """The worker that failed is busy when the time has come."""
    await fabric.protocol.send(task(pool, 1))
    first = await take_one(fabric.protocol, pool)
    await first.nack(delay_s=0.5)
    await holds(fabric.protocol, pool, (0, 0, 1, 0) if knows_what_runs(fabric) else (1, 0, 0, 0))
    if hands_out_one_by_one(fabric):
        again = await take_one(await fabric.member(), pool, within_s=3 if knows_what_runs(fabric) else 15)
    else:
        again = await take_one(fabric.protocol, pool, within_s=3)
    assert (number(again), again.attempt) == (1, 2)
    await holds(fabric.protocol, pool, (0, 1, 0, 0) if knows_what_runs(fabric) else (1, 0, 0, 0))
    await again.ack()
    await empty(fabric.protocol, pool)


async def test_the_more_urgent_are_taken_sooner(fabric: Fabric, pool: str) -> None:
    levels = [Priority.LOW, Priority.CRITICAL, Priority.NORMAL, Priority.HIGH] * 5
    await fabric.protocol.send_many([task(pool, n, priority=level) for n, level in enumerate(levels)])
    taken = []
    for _ in levels:
        taken += await take(fabric.protocol, pool, 1)
    urgency = [delivery.message.priority for delivery in taken]
    if hands_out_one_by_one(fabric) and knows_what_runs(fabric):
        assert urgency[0] == Priority.CRITICAL
        last = [max(place for place, level in enumerate(urgency) if level == wanted) for wanted in sorted(set(levels))]
        assert last == sorted(last, reverse=True), "the less urgent end later"
    assert sorted(number(delivery) for delivery in taken) == list(range(20))


async def test_a_resend_is_handled_once_by_all_members_together(fabric: Fabric, pool: str) -> None:
    members = [await fabric.member() for _ in range(3)]
    seen: Counter[str] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[delivery.message.id] += 1
        await asyncio.sleep(0.01)

    messages = [task(pool, n) for n in range(40)]
    await fabric.protocol.send_many([*messages, *messages])
    async with serving(members[0], pool, handle), serving(members[1], pool, handle), serving(members[2], pool, handle):
        await empty(fabric.protocol, pool)
        await fabric.protocol.send_many(messages)
        await empty(fabric.protocol, pool)
    assert set(seen) == {message.id for message in messages}
    assert max(seen.values()) <= (1 if knows_what_runs(fabric) else 3), "no more often than it was sent"


async def test_a_copy_that_was_dropped_stands_for_nothing(fabric: Fabric, pool: str) -> None:
    """A resend is dropped by one member while the first copy is with another. That one is not handled yet: when
    its member dies it must not be taken for a duplicate of what was dropped."""
    message = task(pool, 1, ("sleep", 60))
    holder = await fabric.worker(pool)
    await fabric.protocol.send(message)
    await until(lambda: fabric.journal.starts(pool), "it runs")
    await fabric.protocol.send(message)
    other = await fabric.member()
    if not knows_what_runs(fabric):
        copy = await take_one(other, pool)
        assert copy.message.id == message.id, "a duplicate is handled by who does not have the first"
        await copy.ack()
        return
    await nothing_for(other, pool)
    holder.kill()
    again = await take_one(other, pool, within_s=2 * fabric.takeover_s)
    assert (again.message.id, again.attempt) == (message.id, 2)
    await again.ack()
    await nothing_for(other, pool)
    await empty(fabric.protocol, pool)


async def test_a_frozen_member_settles_nothing_any_more(fabric: Fabric, pool: str) -> None:
    if not fabric.features.shared:
        delivery = await _taken_and_lost_in_the_loop(fabric, pool)
        with pytest.raises(LeaseLost):
            await delivery.ack()
        return
    frozen = await fabric.process(pool)
    assert isinstance(frozen, ProcessWorker)
    await fabric.protocol.send(task(pool, 1, ("sleep", 0.3)))
    await until(lambda: fabric.journal.starts(pool), "it runs")
    frozen.freeze()
    again = await take_one(fabric.protocol, pool, within_s=fabric.takeover_s + 1)
    frozen.thaw()
    await until(lambda: fabric.journal.ends(pool), "the frozen one goes on")
    await nothing_for(fabric.protocol, pool)
    await holds(fabric.protocol, pool, (0, 1, 0, 0) if knows_what_runs(fabric) else (1, 0, 0, 0))
    await again.ack()
    await empty(fabric.protocol, pool)


async def _taken_and_lost_in_the_loop(fabric: Fabric, pool: str) -> Delivery:
    member = await fabric.member()
    await fabric.protocol.send(task(pool, 1))
    delivery = await take_one(member, pool)
    await member.close(0.0)
    await take(fabric.protocol, pool, 1)
    return delivery


@pytest.mark.slow
async def test_a_clean_stop_gives_back_and_nothing_is_done_twice(fabric: Fabric, pool: str) -> None:
    fabric.settings.update(lease_s=30.0)  # what a busy machine lets lapse is no matter of stopping
    workers = [await fabric.worker(pool, concurrency=4) for _ in range(2)]
    total = count(400, 5_000 if knows_what_runs(fabric) else 400)  # what is lent at once has its time together
    await fabric.protocol.send_many([task(pool, n, ("sleep", 0.05)) for n in range(total)])
    for _ in range(3):
        ended = len(fabric.journal.ends(pool))
        await until(lambda ended=ended: len(fabric.journal.ends(pool)) > ended + 20, "work goes on")  # type: ignore[misc]
        workers[0].terminate()
        assert await workers.pop(0).ended() == 0
        workers.append(await fabric.worker(pool, concurrency=4))
    await empty(fabric.protocol, pool, within_s=60)
    assert Counter(entry.n for entry in fabric.journal.starts(pool)) == dict.fromkeys(range(total), 1)


async def test_what_comes_to_a_member_while_it_closes_was_not_started(fabric: Fabric, pool: str) -> None:
    """It is closed at one moment or another after a message was sent."""
    if not knows_what_runs(fabric):
        return
    sent, starts = 0, Counter[int]()

    async def send_one() -> None:
        nonlocal sent
        sent += 1
        await fabric.protocol.send(task(pool, sent, key=f"k{sent}"))

    async def handle(member: Protocol, wait_s: float) -> None:
        for delivery in await member.receive(pool, wait_s=wait_s):
            starts[number(delivery)] += 1
            assert delivery.attempt == starts[number(delivery)], f"of message {number(delivery)}"
            with suppress(HivewireError):  # it was closed
                await delivery.ack()

    for moment in range(12):
        member = await fabric.member()
        first = asyncio.create_task(handle(member, 15.0))
        while not first.done():
            await send_one()
        await first
        last = asyncio.create_task(handle(member, 15.0))
        for _ in range(moment):
            await send_one()
        await member.close()
        with suppress(Closed):
            await last
    while sum(counts(await fabric.protocol.depth(pool))):
        await handle(fabric.protocol, 1.0)
    assert len(starts) == sent


async def test_ten_members_share_and_each_message_is_handled_once(fabric: Fabric, pool: str) -> None:
    total = count(2_000, 50_000)
    seen: Counter[int] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[number(delivery)] += 1

    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task((await fabric.member()).serve(pool, handle, concurrency=4)) for _ in range(10)]
        for start in range(0, total, 500):
            await fabric.protocol.send_many([task(pool, n) for n in range(start, start + 500)])
        await until(lambda: len(seen) == total, "all is handled", 60)
        await eventually(lambda: _depth(fabric, pool), (0, 0, 0, 0), 10)
        for job in jobs:
            job.cancel()
    assert set(seen.values()) == {1}


async def _depth(fabric: Fabric, pool: str) -> tuple[int, int, int, int]:
    return counts(await fabric.protocol.depth(pool))
