"""Promise 3: a dead member's work is with another one within lease + 2 s; a long handler keeps its own."""

from __future__ import annotations

import asyncio
import time

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import Reject
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.journal import first_seen
from hivewire.testing.conformance.scenario import (
    empty,
    nothing_for,
    number,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until


@pytest.mark.slow
async def test_a_dead_worker_s_work_is_taken_over_in_time(fabric: Fabric) -> None:
    first = await fabric.worker("over", concurrency=4)
    await send_numbered(fabric.protocol, "over", 3, keys=["a", "b", "c", "d"], steps=[("sleep", 1.2)])
    await until(lambda: len(fabric.journal.starts("over")) == 4, "it runs")
    second = await fabric.worker("over", concurrency=4)
    killed_at = fabric.now()
    first.kill()
    held = {entry.id for entry in fabric.journal.starts("over")} - {entry.id for entry in fabric.journal.ends("over")}
    assert held
    await empty(fabric.protocol, "over", within_s=30)
    taken_over = [entry for entry in fabric.journal.entries("start", worker=second.name) if entry.id in held]
    assert {entry.id for entry in taken_over} == held
    latest = max(entry.at for entry in taken_over) - killed_at
    assert latest <= fabric.takeover_s, f"taken over after {latest:.2f} s"


@pytest.mark.slow
async def test_a_restarted_worker_gets_unfinished_work_oldest_first(fabric: Fabric) -> None:
    first = await fabric.worker("again", concurrency=2)
    await send_numbered(fabric.protocol, "again", 5, keys=["a", "b"], steps=[("sleep", 0.2)])
    await until(lambda: len(fabric.journal.ends("again")) >= 3, "it runs")
    first.kill()
    await first.ended()
    done = {(entry.key, entry.n) for entry in fabric.journal.ends("again")}
    second = await fabric.worker("again", concurrency=2)
    await empty(fabric.protocol, "again", within_s=30)
    for key, numbers in first_seen(fabric.journal.entries("start", worker=second.name)).items():
        assert numbers == sorted(numbers)
        assert numbers[-1] == 4
        assert {(key, n) for n in range(5)} <= done | {(key, n) for n in numbers}


@pytest.mark.parametrize("outcome", ["done", "rejected"])
async def test_a_handler_that_never_waits_goes_through_all_that_a_dead_member_held(
    fabric: Fabric, outcome: str
) -> None:
    """Each start is marked while the outcome of the one before is still on its way to the store."""
    first = await fabric.worker("swift", concurrency=3)
    await send_numbered(fabric.protocol, "swift", 6, keys=["a", "b", "c"], steps=[("sleep", 60)])
    await until(lambda: len(fabric.journal.starts("swift")) == 3, "it runs")
    first.kill()
    await first.ended()
    handled: dict[str | None, list[int]] = {}

    async def handle(delivery: Delivery) -> None:
        handled.setdefault(delivery.message.key, []).append(number(delivery))
        if outcome == "rejected":
            raise Reject("not this one")

    async with serving(fabric.protocol, "swift", handle, concurrency=3):
        await empty(fabric.protocol, "swift", dead=18 if outcome == "rejected" else 0, within_s=30)
    assert handled == {key: list(range(6)) for key in "abc"}


async def test_an_idle_members_death_holds_nobody_up(fabric: Fabric) -> None:
    first = await fabric.worker("idle")
    await fabric.protocol.send(task("idle", 1))
    await empty(fabric.protocol, "idle")
    first.kill()
    await first.ended()
    began = asyncio.get_running_loop().time()
    await fabric.protocol.send(task("idle", 2))
    assert number((await take(fabric.protocol, "idle", 1))[0]) == 2
    assert asyncio.get_running_loop().time() - began <= fabric.takeover_s


@pytest.mark.slow
async def test_a_handler_longer_than_the_lease_keeps_its_message(fabric: Fabric) -> None:
    await fabric.worker("slow")
    await fabric.worker("slow")
    await fabric.protocol.send(task("slow", 1, ("sleep", 2.5 * fabric.lease_s)))
    await fabric.protocol.send(task("slow", 2))
    await empty(fabric.protocol, "slow", within_s=30)
    assert [(entry.n, entry.attempt) for entry in fabric.journal.starts("slow")] == [(1, 1), (2, 1)]


@pytest.mark.slow
async def test_a_handler_that_blocks_its_loop_keeps_its_message(fabric: Fabric) -> None:
    await fabric.worker("blocked")
    await fabric.worker("blocked")
    await fabric.protocol.send(task("blocked", 1, ("block", 2.5 * fabric.lease_s)))
    await empty(fabric.protocol, "blocked", within_s=30)
    assert [(entry.n, entry.attempt) for entry in fabric.journal.starts("blocked")] == [(1, 1)]


@pytest.mark.slow
async def test_async_with_is_renewed_and_a_bare_delivery_is_not(fabric: Fabric) -> None:
    await fabric.protocol.send_many([task("held", 1, key="a"), task("held", 2, key="b")])
    other = await fabric.member()
    bare, inside = await take_one(fabric.protocol, "held"), await take_one(fabric.protocol, "held")
    async with inside:
        again = await take_one(other, "held", within_s=fabric.takeover_s + 1)
        assert again.message == bare.message
        await again.ack()
        await nothing_for(other, "held", fabric.lease_s)
    await empty(fabric.protocol, "held")


@pytest.mark.slow
async def test_extend_keeps_a_bare_delivery(fabric: Fabric) -> None:
    await fabric.protocol.send(task("extend", 1))
    other = await fabric.member()
    held = await take_one(fabric.protocol, "extend")
    for _ in range(5):
        await nothing_for(other, "extend", 0.5 * fabric.lease_s)
        await held.extend()
    await held.ack()
    await empty(fabric.protocol, "extend")


async def test_a_handler_past_its_time_limit_is_cancelled_and_it_counts(fabric: Fabric) -> None:
    attempts: list[int] = []
    cancelled: list[int] = []

    async def hang(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt > 1:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(delivery.attempt)
            raise

    await fabric.protocol.send(task("limit"))
    async with serving(fabric.protocol, "limit", hang, timeout_s=0.3):
        await empty(fabric.protocol, "limit")
    assert (attempts, cancelled) == ([1, 2], [1])


@pytest.mark.slow
async def test_two_of_three_members_die_and_nothing_is_lost(fabric: Fabric) -> None:
    workers = [await fabric.worker("three", concurrency=4) for _ in range(3)]
    await send_numbered(fabric.protocol, "three", 6, keys=[f"k{n}" for n in range(12)], steps=[("sleep", 0.1)])
    await until(lambda: len(fabric.journal.ends("three")) > 10, "it runs")
    for worker in workers[:2]:
        worker.kill()
    await empty(fabric.protocol, "three", within_s=30)
    done = {(entry.key, entry.n) for entry in fabric.journal.ends("three") if entry.note == "done"}
    assert done == {(f"k{key}", n) for key in range(12) for n in range(6)}


@pytest.mark.parametrize("kind", ["sleeping", "running"])
async def test_a_blocked_loop_in_this_process_does_not_lose_the_lease(fabric: Fabric, kind: str) -> None:
    """The loop stands still for longer than the lease: no second start, and the acknowledgement counts."""
    other = await fabric.member()
    starts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        starts.append(delivery.attempt)
        if kind == "sleeping":
            await asyncio.sleep(0.05)
        time.sleep(1.5 * fabric.lease_s)  # noqa: ASYNC251 -- the loop must stand still
        await asyncio.sleep(0.05)

    async with serving(fabric.protocol, "still", handle), serving(other, "still", handle):
        await fabric.protocol.send(task("still"))
        await until(lambda: starts, "it runs")
        await empty(fabric.protocol, "still")
    assert starts == [1]
