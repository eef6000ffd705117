"""Promise 4: who was away for longer than its lease can settle nothing any more."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import AlreadySettled, Closed, LeaseLost
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    empty,
    holds,
    nothing_for,
    number,
    send_numbered,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until

LATE = ("ack", "nack", "reject", "extend")


async def _settle(delivery: Delivery, how: str) -> None:
    if how == "reject":
        await delivery.reject("late")
    elif how == "nack":
        await delivery.nack()
    elif how == "extend":
        await delivery.extend()
    else:
        await delivery.ack()


@pytest.mark.parametrize("how", LATE)
async def test_a_late_settlement_is_refused_and_changes_nothing(fabric: Fabric, how: str) -> None:
    other = await fabric.member()
    await send_numbered(fabric.protocol, "late", 2)
    stale = await take_one(fabric.protocol, "late")
    fresh = await take_one(other, "late", within_s=fabric.takeover_s + 1)
    assert fresh.message == stale.message
    assert fresh.attempt == 2
    with pytest.raises(LeaseLost):
        await _settle(stale, how)
    await holds(fabric.protocol, "late", (1, 1, 0, 0))
    await fresh.ack()
    following = await take_one(other, "late")
    assert number(following) == 1
    await following.ack()
    await empty(fabric.protocol, "late")


async def test_a_late_settlement_after_the_other_finished_is_refused(fabric: Fabric) -> None:
    other = await fabric.member()
    await fabric.protocol.send(task("done"))
    stale = await take_one(fabric.protocol, "done")
    await (await take_one(other, "done")).ack()
    with pytest.raises(LeaseLost):
        await stale.nack(delay_s=0)
    await nothing_for(other, "done")
    await holds(fabric.protocol, "done", (0, 0, 0, 0))


async def test_the_old_delivery_of_a_member_that_took_it_again_is_refused(fabric: Fabric) -> None:
    """The same member may not settle today's attempt by yesterday's delivery."""
    await fabric.protocol.send(task("twice"))
    stale = await take_one(fabric.protocol, "twice")
    fresh = await take_one(fabric.protocol, "twice", within_s=fabric.takeover_s + 1)
    with pytest.raises((LeaseLost, AlreadySettled)):
        await stale.ack()
    await holds(fabric.protocol, "twice", (0, 1, 0, 0))
    await fresh.ack()
    await empty(fabric.protocol, "twice")


async def test_a_settlement_in_time_but_not_taken_by_anybody_is_fenced_or_counts(fabric: Fabric) -> None:
    """After the lease, with nobody else there: accepted or refused, but it says which, and that is so."""
    await fabric.protocol.send(task("alone"))
    stale = await take_one(fabric.protocol, "alone")
    await asyncio.sleep(1.5 * fabric.lease_s)
    try:
        await stale.ack()
    except LeaseLost:
        again = await take_one(fabric.protocol, "alone")
        await again.ack()
    await empty(fabric.protocol, "alone")


async def test_a_frozen_worker_is_taken_over_and_its_late_ack_refused(fabric: Fabric) -> None:
    if not fabric.features.shared:
        await test_a_late_settlement_after_the_other_finished_is_refused(fabric)
        return
    frozen = await fabric.process("ice", name="frozen")
    await fabric.protocol.send(task("ice", 0, ("sleep", 0.4)))
    await fabric.protocol.send(task("ice", 1))
    await until(lambda: fabric.journal.starts("ice"), "it runs")
    # Not within a write: the running mark is stored and the next write is the acknowledgement.
    await asyncio.sleep(0.2)
    frozen.freeze()
    frozen_at = fabric.now()
    second = await fabric.worker("ice", name="second")
    await empty(fabric.protocol, "ice", within_s=20)
    took = fabric.journal.entries("start", worker=second.name)
    assert [entry.n for entry in took] == [0, 1]
    assert took[0].at - frozen_at <= fabric.takeover_s + 1.0  # the second process had to start, too
    frozen.thaw()
    await until(lambda: fabric.journal.entries("end", worker="frozen"), "the frozen one goes on")
    await fabric.protocol.send(task("ice", 2))
    await until(lambda: any(entry.n == 2 for entry in fabric.journal.ends("ice")), "the next one")
    await empty(fabric.protocol, "ice")
    assert [entry.n for entry in fabric.journal.starts("ice")] == [0, 0, 1, 2]


async def test_a_late_verdict_of_a_frozen_worker_is_forgotten(fabric: Fabric) -> None:
    """It rejects after its lease ended; when the message comes back to it, that verdict counts no more."""
    if not fabric.features.shared:
        await test_the_old_delivery_of_a_member_that_took_it_again_is_refused(fabric)
        return
    first = await fabric.process("fate", name="first")
    steps = (("sleep", 0.4), ("reject", "too late", 1), ("sleep", 1.0), ("die", 2))
    await fabric.protocol.send(task("fate", 0, *steps))
    await until(lambda: fabric.journal.starts("fate"), "it runs")
    await asyncio.sleep(0.2)  # not within a write, as above
    first.freeze()
    second = await fabric.process("fate", name="second")
    await until(lambda: len(fabric.journal.starts("fate")) == 2, "it is taken over")
    first.thaw()
    assert await second.ended() != 0
    await empty(fabric.protocol, "fate")
    late, last = fabric.journal.ends("fate")
    assert late.note in ("Reject", "cancelled")  # it was asleep, or was told in time that its lease is over
    assert (late.worker, last.worker, last.note) == ("first", "first", "done")


async def test_a_dead_member_s_deliveries_are_nobody_s(fabric: Fabric) -> None:
    """A member inside this process that stopped without a word (a killed process can do nothing anyway)."""
    if fabric.features.shared:
        worker = await fabric.worker("gone")
        await fabric.protocol.send(task("gone", 0, ("sleep", 0.2), ("die", 1)))
        assert await worker.ended() != 0
    else:
        member = await fabric.member()
        await fabric.protocol.send(task("gone"))
        held = await take_one(member, "gone")
        member.abandon()
        with pytest.raises((LeaseLost, Closed)):
            await asyncio.wait_for(held.ack(), 5)
    fresh = await take_one(fabric.protocol, "gone", within_s=fabric.takeover_s + 1)
    assert fresh.attempt == 2
    await holds(fabric.protocol, "gone", (0, 1, 0, 0))
    await fresh.ack()
    await empty(fabric.protocol, "gone")
