"""Who may write: versions, leases and their tokens."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.coordination.ledger import Guard, ProgressEntry, Task, TaskChange, TaskFilter, TaskStatus
from hivewire.errors import InvalidTransition, LeaseLost, LedgerError, TaskExists, TaskMissing, VersionConflict
from hivewire.testing.ledgers.fabric import LedgerFabric


async def test_a_version_that_is_outdated_is_refused(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    changed = await ledger.update_task(task.id, TaskChange(priority=6), Guard(version=1))
    for doing in (
        ledger.update_task(task.id, TaskChange(priority=7), Guard(version=1)),
        ledger.complete_task(task.id, guard=Guard(version=1)),
        ledger.delete_task(task.id, Guard(version=1)),
    ):
        with pytest.raises(VersionConflict, match=r"has version 2, not 1"):
            await doing
    assert await ledger.get_task(task.id) == changed
    await ledger.delete_task(task.id, Guard(version=2))


async def test_of_writers_with_one_version_one_wins(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    outcomes = await asyncio.gather(
        *(ledger.update_task(task.id, TaskChange(metadata={"n": n}), Guard(version=1)) for n in range(20)),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if isinstance(outcome, Task)]
    assert len(won) == 1
    assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 19
    assert await ledger.get_task(task.id) == won[0]


async def test_of_many_that_complete_one_wins(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    outcomes = await asyncio.gather(
        *(ledger.complete_task(task.id, n) for n in range(10)),
        *(ledger.fail_task(task.id, str(n)) for n in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Task) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, InvalidTransition) for outcome in outcomes) == 19
    assert [entry.version for entry in await ledger.history(task.id)] == [1, 2]


async def test_no_change_is_lost_among_many(ledgers: LedgerFabric) -> None:
    """Read, add one, write with the version, again after a conflict: as many as were added."""
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="counter", metadata={"n": 0}))

    async def add(times: int) -> None:
        while times:
            seen = await ledger.get_task(task.id)
            try:
                more = TaskChange(metadata={"n": seen.metadata["n"] + 1})
                await ledger.update_task(task.id, more, Guard(version=seen.version))
            except VersionConflict:
                continue
            times -= 1

    await asyncio.gather(*(add(10) for _ in range(5)))
    assert (await ledger.get_task(task.id)).metadata == {"n": 50}


async def test_a_lease_is_held_by_one(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    lease = await ledger.acquire("run", "a", 60)
    assert lease is not None
    assert (lease.name, lease.owner) == ("run", "a")
    assert await ledger.acquire("run", "b", 60) is None
    assert await ledger.acquire("other", "b", 60) is not None
    renewed = await ledger.renew(lease, 120)
    assert renewed.token == lease.token
    assert renewed.until > lease.until
    await ledger.release(lease)
    taken = await ledger.acquire("run", "b", 60)
    assert taken is not None
    assert taken.token > lease.token
    with pytest.raises(LeaseLost):
        await ledger.renew(lease, 60)
    await ledger.release(lease)
    assert await ledger.acquire("run", "c", 60) is None, "an old lease must not release the new one"


async def test_of_many_that_want_a_lease_one_gets_it(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    got = await asyncio.gather(*(ledger.acquire("run", f"o{n}", 60) for n in range(20)))
    assert sum(lease is not None for lease in got) == 1


async def test_late_writes_of_a_frozen_owner_are_refused(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    first = await ledger.acquire("run", "first", 0.05)
    assert first is not None
    held = Guard(lease=first)
    task = await ledger.update_task(task.id, TaskChange(status=TaskStatus.IN_PROGRESS), held)
    second = None
    while second is None:  # the first one sleeps through the end of its lease
        second = await ledger.acquire("run", "second", 60)
    for doing in (
        ledger.update_task(task.id, TaskChange(priority=1), held),
        ledger.complete_task(task.id, "late", held),
        ledger.fail_task(task.id, "late", held),
        ledger.cancel_task(task.id, "late", held),
        ledger.delete_task(task.id, held),
        ledger.create_task(Task(name="late"), held),
        ledger.record_progress(ProgressEntry(task_id=task.id, action="late"), held),
    ):
        with pytest.raises(LeaseLost):
            await doing
    assert await ledger.get_task(task.id) == task
    assert await ledger.count_tasks() == 1
    assert await ledger.current_step(task.id) == 0
    done = await ledger.complete_task(task.id, "by the second", Guard(lease=second, version=task.version))
    assert done.output == "by the second"


async def test_an_owner_that_starts_again_fences_its_former_self_off(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    former = await ledger.acquire("run", "me", 60)
    again = await ledger.acquire("run", "me", 60)
    assert former is not None
    assert again is not None
    with pytest.raises(LeaseLost):
        await ledger.complete_task(task.id, guard=Guard(lease=former))
    await ledger.complete_task(task.id, guard=Guard(lease=again))


@pytest.mark.parametrize("lease_s", [0, -1, 1e10, float("nan")])
async def test_odd_times_of_leases_are_refused(ledgers: LedgerFabric, lease_s: float) -> None:
    ledger = await ledgers.open()
    with pytest.raises(LedgerError):
        await ledger.acquire("run", "me", lease_s)


async def test_a_refusal_undoes_nothing_of_what_is_written_beside_it(ledgers: LedgerFabric) -> None:
    """Changes that may be stored together: legal ones, illegal ones, outdated ones, and one of a task that is not."""
    ledger = await ledgers.open()
    tasks = [await ledger.create_task(Task(name=f"t{n}")) for n in range(30)]
    for task in tasks[10:20]:
        await ledger.complete_task(task.id)
    outcomes = await asyncio.gather(
        *(ledger.update_task(task.id, TaskChange(priority=9), Guard(version=1)) for task in tasks[:20]),
        *(ledger.update_task(task.id, TaskChange(priority=9), Guard(version=7)) for task in tasks[20:]),
        ledger.update_task("nobody", TaskChange(priority=9), Guard(version=1)),
        ledger.create_task(Task(name="another", id=tasks[0].id)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        *([Task] * 10),
        *([VersionConflict] * 20),
        TaskMissing,
        TaskExists,
    ]
    for task, outcome in zip(tasks[:10], outcomes, strict=False):
        assert outcome == await ledger.get_task(task.id)
        assert (outcome.priority, outcome.version) == (9, 2)
    assert {task.priority for task in await ledger.list_tasks()} == {5, 9}
    assert [task.version for task in await ledger.list_tasks(TaskFilter(sort_order="asc"))] == [2] * 20 + [1] * 10
    assert all(task.name == f"t{n}" for n, task in enumerate(await ledger.list_tasks(TaskFilter(sort_order="asc"))))
