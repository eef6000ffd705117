"""Statistics, purging, retention, health, closing."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.coordination.ledger import ProgressEntry, Task, TaskStatus
from hivewire.errors import Closed, LeaseLost, LedgerError
from hivewire.rules.task_states import FINISHED
from hivewire.testing.ledgers.fabric import LedgerFabric, brought_to


async def test_statistics_of_an_empty_ledger(ledgers: LedgerFabric) -> None:
    """Defect 26: they failed on an empty table."""
    stats = await (await ledgers.open()).stats()
    assert (stats.total, stats.total_progress, stats.oldest, stats.newest) == (0, 0, None, None)
    assert stats.storage_size_bytes > 0


async def test_statistics_are_true(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    tasks = [await brought_to(ledger, status) for status in TaskStatus for _ in range(2)]
    await ledger.record_progress(ProgressEntry(task_id=tasks[0].id, action="a"))
    stats = await ledger.stats()
    assert stats.total == 12
    assert [getattr(stats, status) for status in TaskStatus] == [2] * 6
    assert stats.total_progress == 1
    assert (stats.oldest, stats.newest) == (tasks[0].created_at, tasks[-1].created_at)


async def test_purging_takes_what_is_finished_and_old_enough(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    tasks = {status: await brought_to(ledger, status) for status in TaskStatus}
    for task in tasks.values():
        await ledger.record_progress(ProgressEntry(task_id=task.id, action="a"))
    assert await ledger.purge_completed(3600) == 0
    assert await ledger.purge_progress(3600) == 0
    assert await ledger.purge_completed(0, (TaskStatus.FAILED,)) == 1
    assert await ledger.purge_completed(0) == 2
    left = {task.status for task in await ledger.list_tasks()}
    assert left == set(TaskStatus) - set(FINISHED)
    assert (await ledger.stats()).total_progress == 3
    assert await ledger.purge_progress(0) == 3
    for status in FINISHED:
        assert await ledger.history(tasks[status].id) == []


async def test_purging_goes_on_until_nothing_is_left(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    await ledger.create_tasks([Task(name="t") for _ in range(2_300)])
    for task in await ledger.list_tasks():
        await ledger.complete_task(task.id)
    for _ in range(2_100):
        await ledger.record_progress(ProgressEntry(task_id=task.id, action="a"))
    assert await ledger.purge_progress(0) == 2_100
    assert await ledger.purge_completed(0) == 100
    assert (await ledger.stats()).total == 2_200


async def test_what_is_not_finished_is_never_purged(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    for statuses in ((TaskStatus.PENDING,), (), tuple(TaskStatus)):
        with pytest.raises(LedgerError, match="only what is finished"):
            await ledger.purge_completed(0, statuses)
    with pytest.raises(LedgerError):
        await ledger.purge_completed(-1)
    assert await ledger.get_task(task.id) == task


async def test_purging_forgets_leases_that_have_ended_and_no_other(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    ended = await ledger.acquire("ended", "a", 60)
    held = await ledger.acquire("held", "a", 60)
    assert ended is not None
    assert held is not None
    await ledger.release(ended)
    await ledger.purge_completed(0)
    assert await ledger.acquire("held", "b", 60) is None
    assert (await ledger.renew(held, 60)).token == held.token
    with pytest.raises(LeaseLost):  # of one that was only let go, this would be the last owner's again
        await ledger.renew(ended, 60)
    again = await ledger.acquire("ended", "b", 60)
    assert again is not None
    assert again.token > ended.token


async def test_retention_purges_by_itself(ledgers: LedgerFabric) -> None:
    """The reference has the settings, and no code that purges."""
    ledger = await ledgers.open(
        ledger={"auto_purge": True, "purge_interval": 0.1, "retain_duration": 0.2, **ledgers.settings.get("ledger", {})}
    )
    done, waits = [await brought_to(ledger, status) for status in (TaskStatus.COMPLETED, TaskStatus.PENDING)]
    deadline = asyncio.get_running_loop().time() + 10
    while len(left := await ledger.list_tasks()) > 1:
        assert asyncio.get_running_loop().time() < deadline, f"{done.id} was not purged"
        await asyncio.sleep(0.02)
    assert left == [waits]


async def test_health_is_green(ledgers: LedgerFabric) -> None:
    health = await (await ledgers.open()).health()
    assert health.ok
    assert health.durability in ("volatile", "disk")
    assert health.schema >= 2
    assert health.detail == ""


async def test_closing_twice_and_using_it_afterwards(ledgers: LedgerFabric) -> None:
    ledger = ledgers.make()
    async with ledger:
        await ledger.create_task(Task(name="t"))
    await ledger.close()


async def test_closing_while_others_write(ledgers: LedgerFabric) -> None:
    """Each write that was confirmed is there; the others say that they were not."""
    ledger = ledgers.make()
    await ledger.open()
    reader = await ledgers.open() if ledgers.shared else None
    tasks = [Task(name=f"t{n}") for n in range(50)]
    writing = [asyncio.create_task(ledger.create_task(task)) for task in tasks]
    await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
    await ledger.close()
    outcomes = await asyncio.gather(*writing, return_exceptions=True)
    assert all(isinstance(outcome, (Task, Closed)) for outcome in outcomes), outcomes
    if reader is not None:
        stored = {task.id for task in await reader.list_tasks()}
        assert {outcome.id for outcome in outcomes if isinstance(outcome, Task)} <= stored
