"""Progress: numbered steps of a task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hivewire.coordination.ledger import ProgressEntry, Task
from hivewire.errors import LedgerError, TaskMissing
from hivewire.testing.ledgers.fabric import LedgerFabric


async def test_every_field_comes_back_and_steps_are_counted(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    assert await ledger.current_step(task.id) == 0
    assert await ledger.latest_progress(task.id) is None
    given = ProgressEntry(
        task_id=task.id,
        action="think",
        agent_id="coder",
        description="what to do",
        input={"n": 1},
        output=["x"],
        status="running",
        error="none",
        metadata={"k": "v"},
    )
    first = await ledger.record_progress(given)
    assert first.created_at > 1_000_000
    for name in ProgressEntry.__struct_fields__:
        if name not in ("step", "created_at"):
            assert getattr(first, name) == getattr(given, name), name
    second = await ledger.record_progress(ProgressEntry(task_id=task.id, action="act"))
    assert (first.step, second.step) == (1, 2)
    assert await ledger.progress(task.id) == [first, second]
    assert await ledger.progress(task.id, after_step=1, limit=5) == [second]
    assert await ledger.latest_progress(task.id) == second
    assert await ledger.current_step(task.id) == 2
    assert await ledger.clear_progress(task.id) == 2
    assert await ledger.progress(task.id) == []


async def test_the_same_entry_again_is_the_same_step(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    entry = ProgressEntry(task_id=task.id, action="once")
    first = await ledger.record_progress(entry)
    assert await ledger.record_progress(entry) == first
    assert await ledger.progress(task.id) == [first]


async def test_a_step_may_be_named_once(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    assert (await ledger.record_progress(ProgressEntry(task_id=task.id, action="a", step=7))).step == 7
    with pytest.raises(LedgerError, match="step 7"):
        await ledger.record_progress(ProgressEntry(task_id=task.id, action="b", step=7))
    assert (await ledger.record_progress(ProgressEntry(task_id=task.id, action="c"))).step == 8
    assert [entry.step for entry in await ledger.progress(task.id)] == [7, 8]


async def test_writers_at_once_get_a_number_each(ledgers: LedgerFabric) -> None:
    ledgers_open = [await ledgers.open() for _ in range(2 if ledgers.shared else 1)]
    task = await ledgers_open[0].create_task(Task(name="t"))
    await asyncio.gather(
        *(
            ledger.record_progress(ProgressEntry(task_id=task.id, action=f"a{n}"))
            for ledger in ledgers_open
            for n in range(20)
        )
    )
    steps = [entry.step for entry in await ledgers_open[0].progress(task.id)]
    assert steps == list(range(1, 20 * len(ledgers_open) + 1))


async def test_progress_of_no_task_is_refused(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    with pytest.raises(TaskMissing, match="nobody"):
        await ledger.record_progress(ProgressEntry(task_id="nobody", action="a"))


@pytest.mark.parametrize(
    "fields",
    [{"action": ""}, {"step": 0}, {"step": 2**31}, {"step": "1"}, {"input": {"v": float("inf")}}, {"agent_id": "\0"}],
    ids=str,
)
async def test_what_cannot_be_kept_is_refused(ledgers: LedgerFabric, fields: dict[str, Any]) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    with pytest.raises(LedgerError):
        await ledger.record_progress(ProgressEntry(**{"task_id": task.id, "action": "a", **fields}))
    assert await ledger.progress(task.id) == []
