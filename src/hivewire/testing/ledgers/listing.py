"""Filters, order and pages, against a plain model of them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from hivewire.coordination.ledger import Ledger, Task, TaskChange, TaskFilter, TaskStatus
from hivewire.errors import LedgerError
from hivewire.testing.ledgers.fabric import LedgerFabric

INJECTIONS = [
    "created_at; DROP TABLE tasks",
    "1/0",
    "(SELECT 1/0)",
    "created_at DESC, (SELECT 1)",
    "id",
    "Priority",
    "priority--",
    "",
    None,
    5,
]


async def some(ledger: Ledger, seed: int = 1, count: int = 60) -> list[Task]:
    """Tasks of every kind, as the ledger has them."""
    chance = random.Random(seed)
    made = []
    for n in range(count):
        task = await ledger.create_task(
            Task(
                name=f"t{n}",
                priority=chance.randint(1, 10),
                created_by=chance.choice(["", "ann", "bob"]),
                parent_id=chance.choice(["", "run-1"]),
            )
        )
        for change in chance.choice(CAREERS):
            task = await ledger.update_task(task.id, change)
        made.append(task)
    return made


CAREERS: list[list[TaskChange]] = [
    [],
    [TaskChange(status=TaskStatus.ASSIGNED, assigned_to="coder")],
    [TaskChange(status=TaskStatus.ASSIGNED, assigned_to="writer"), TaskChange(status=TaskStatus.IN_PROGRESS)],
    [TaskChange(status=TaskStatus.COMPLETED)],
    [TaskChange(status=TaskStatus.FAILED, error="x"), TaskChange(metadata={"n": 1})],
    [TaskChange(status=TaskStatus.CANCELLED)],
]


def model(tasks: list[Task], wanted: TaskFilter) -> list[Task]:
    """What the filter must give, the slow and obvious way."""
    fits = [
        task
        for task in tasks
        if (not wanted.statuses or task.status in wanted.statuses)
        and all(
            getattr(wanted, field) in (None, getattr(task, field))
            for field in ("assigned_to", "created_by", "parent_id")
        )
        and (wanted.created_after is None or task.created_at > wanted.created_after)
        and (wanted.created_before is None or task.created_at < wanted.created_before)
        and (wanted.updated_after is None or task.updated_at > wanted.updated_after)
        and (wanted.updated_before is None or task.updated_at < wanted.updated_before)
    ]
    fits.sort(key=lambda task: (getattr(task, wanted.sort_by), task.id), reverse=wanted.sort_order == "desc")
    return fits


def filters(tasks: list[Task]) -> list[TaskFilter]:
    times = sorted(task.created_at for task in tasks)
    changed = sorted(task.updated_at for task in tasks)
    fields: list[dict[str, Any]] = [
        {},
        {"statuses": (TaskStatus.PENDING,)},
        {"statuses": (TaskStatus.COMPLETED, TaskStatus.FAILED)},
        {"assigned_to": "coder"},
        {"assigned_to": ""},
        {"created_by": "ann", "statuses": (TaskStatus.PENDING, TaskStatus.ASSIGNED)},
        {"created_by": "nobody"},
        {"parent_id": "run-1", "created_after": times[10]},
        {"created_before": times[30], "created_after": times[5]},
        {"updated_after": changed[20], "updated_before": changed[40]},
    ]
    return [
        TaskFilter(**field, sort_by=by, sort_order=order)
        for field in fields
        for by in ("created_at", "updated_at", "priority")
        for order in ("asc", "desc")
    ]


async def test_filters_and_orders_are_as_in_a_plain_model(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    tasks = await some(ledger)
    for wanted in filters(tasks):
        expected = model(tasks, wanted)
        assert await ledger.list_tasks(wanted) == expected, wanted
        assert await ledger.count_tasks(wanted) == len(expected), wanted


@pytest.mark.parametrize("by", ["created_at", "updated_at", "priority"])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_give_each_task_once(ledgers: LedgerFabric, by: Any, order: Any) -> None:
    ledger = await ledgers.open()
    tasks = await some(ledger)
    wanted: TaskFilter | None = TaskFilter(sort_by=by, sort_order=order, limit=7)
    assert wanted is not None
    expected = model(tasks, wanted)
    seen: list[Task] = []
    while wanted is not None:
        page = await ledger.list_tasks(wanted)
        seen += page
        wanted = wanted.following(page)
    assert seen == expected
    paged = [
        task
        for offset in range(0, 60, 7)
        for task in await ledger.list_tasks(TaskFilter(sort_by=by, sort_order=order, limit=7, offset=offset))
    ]
    assert paged == expected


async def test_a_page_is_not_moved_by_what_is_added_meanwhile(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    tasks = await some(ledger, count=20)
    wanted = TaskFilter(limit=10)
    first = await ledger.list_tasks(wanted)
    await some(ledger, seed=2, count=5)
    following = wanted.following(first)
    assert following is not None
    assert first + await ledger.list_tasks(following) == model(tasks, wanted)


@pytest.mark.parametrize("value", INJECTIONS, ids=str)
async def test_nothing_but_known_columns_sorts(ledgers: LedgerFabric, value: Any) -> None:
    """Defect 26: what was given as the column was run as SQL."""
    ledger = await ledgers.open()
    with pytest.raises(LedgerError, match="sorted by"):
        await ledger.list_tasks(TaskFilter(sort_by=value))
    with pytest.raises(LedgerError, match="asc or desc"):
        await ledger.list_tasks(TaskFilter(sort_order=value))


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": "5"},
        {"offset": -1},
        {"offset": 2**63},
        {"after": "nonsense"},
        {"after": "1.5"},
        {"after": "x/y"},
        {"statuses": ("odd",)},
    ],
    ids=str,
)
def test_what_is_no_filter_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        TaskFilter(**fields)


async def test_texts_in_filters_are_texts(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    await ledger.create_task(Task(name="t", created_by="ann"))
    for text in ("' OR '1'='1", "ann' --", "$1", "?1", "%"):
        assert await ledger.list_tasks(TaskFilter(created_by=text)) == []


async def test_pending_the_most_urgent_first(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    for priority in (3, 9, 5):
        await ledger.create_task(Task(name="t", priority=priority))
    await ledger.complete_task((await ledger.create_task(Task(name="done", priority=10))).id)
    assert [task.priority for task in await ledger.pending_tasks()] == [9, 5, 3]
    assert [task.priority for task in await ledger.pending_tasks(limit=1)] == [9]
    assert [task.name for task in await ledger.tasks_by_status(TaskStatus.COMPLETED)] == ["done"]


@pytest.mark.parametrize("odd", ["failed", {"name": "t"}, 7], ids=str)
async def test_what_is_of_another_kind_is_refused_in_one_sentence(ledgers: LedgerFabric, odd: Any) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    calls: list[tuple[Callable[[], Awaitable[object]], str]] = [
        (partial(ledger.create_task, odd), "Task"),
        (partial(ledger.create_tasks, [odd]), "Task"),
        (partial(ledger.update_task, task.id, odd), "TaskChange"),
        (partial(ledger.list_tasks, odd), "TaskFilter"),
        (partial(ledger.count_tasks, odd), "TaskFilter"),
        (partial(ledger.record_progress, odd), "ProgressEntry"),
    ]
    for call, kind in calls:
        with pytest.raises(LedgerError, match=f"a {kind} is wanted here, not "):
            await call()
    assert await ledger.list_tasks() == [task]
