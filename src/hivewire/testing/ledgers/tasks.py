"""Tasks are kept as they were given, and change as they may."""

from __future__ import annotations

from typing import Any

import pytest

from hivewire.coordination.ledger import Task, TaskChange, TaskStatus
from hivewire.errors import InvalidTransition, LedgerError, TaskExists, TaskMissing
from hivewire.rules.task_states import OPEN, may_follow
from hivewire.testing.ledgers.fabric import LedgerFabric, brought_to

STRANGE: list[Any] = [
    None,
    True,
    -0.5,
    2**63,
    "",
    "\0 and \x1f",
    "ß 漢字 🚀 \u2028",
    "}{ ]['\";-- $1 ?1",
    [[], {}, [None]],
    {"": {"nested": [1, {"deep": "x" * 10_000}]}},
]


def full_task(**changes: Any) -> Task:
    """A task with every field set."""
    fields: dict[str, Any] = {
        "name": "write the report",
        "description": "of \N{GREEK SMALL LETTER ALPHA}",
        "type": "writing",
        "priority": 8,
        "assigned_to": "writer",
        "created_by": "boss",
        "parent_id": "run-1",
        "dependencies": ("a", "b"),
        "input": {"n": 1},
        "output": [1, 2],
        "error": "none yet",
        "metadata": {"trace": "x"},
    }
    return Task(**{**fields, **changes})


async def test_every_field_comes_back(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    given = full_task()
    made = await ledger.create_task(given)
    assert made.version == 1
    assert made.created_at == made.updated_at > 1_000_000
    assert made.completed_at is None
    for name in Task.__struct_fields__:
        if name not in ("version", "created_at", "updated_at"):
            assert getattr(made, name) == getattr(given, name), name
    assert await ledger.get_task(given.id) == made


async def test_a_task_just_created_can_be_read_and_listed(ledgers: LedgerFabric) -> None:
    """Defect 26: the error of a new task was NULL, and could not be read."""
    ledger = await ledgers.open()
    made = await ledger.create_task(Task(name="bare"))
    assert await ledger.get_task(made.id) == made
    assert await ledger.list_tasks() == [made]


@pytest.mark.parametrize("value", STRANGE, ids=range(len(STRANGE)))
async def test_json_comes_back_as_it_was(ledgers: LedgerFabric, value: Any) -> None:
    ledger = await ledgers.open()
    made = await ledger.create_task(Task(name="json", input={"v": value}, output=value, metadata={"v": [value]}))
    read = await ledger.get_task(made.id)
    assert (read.input, read.output, read.metadata) == ({"v": value}, value, {"v": [value]})


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a\0b"},
        {"name": "half \ud800"},
        {"name": 5},
        {"id": ""},
        {"id": "x" * 257},
        {"priority": 0},
        {"priority": 11},
        {"priority": True},
        {"input": {"v": float("nan")}},
        {"input": {"v": {1, 2}}},
        {"input": []},
        {"output": b"bytes"},
        {"metadata": {"k": "\ud800"}},
        {"dependencies": "ab"},
        {"dependencies": (1,)},
        {"status": "odd"},
        {"status": TaskStatus.COMPLETED},
        {"assigned_to": None},
    ],
    ids=str,
)
async def test_what_cannot_be_kept_is_refused_and_nothing_is_stored(
    ledgers: LedgerFabric, fields: dict[str, Any]
) -> None:
    ledger = await ledgers.open()
    with pytest.raises(LedgerError):
        await ledger.create_task(full_task(**fields))
    assert await ledger.count_tasks() == 0


async def test_an_error_text_is_never_refused(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="fails"))
    failed = await ledger.fail_task(task.id, "NUL \0 and half \ud800")
    assert failed.error == "NUL \ufffd and half ?"
    assert await ledger.get_task(task.id) == failed


async def test_an_id_is_used_once(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    made = await ledger.create_task(Task(name="first"))
    with pytest.raises(TaskExists, match=made.id):
        await ledger.create_task(Task(name="second", id=made.id))
    assert await ledger.get_task(made.id) == made


async def test_many_are_created_or_none(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    tasks = [Task(name=f"t{n}", input={"n": n}) for n in range(250)]
    assert await ledger.create_tasks(tasks) == 250
    assert await ledger.count_tasks() == 250
    assert (await ledger.get_task(tasks[249].id)).input == {"n": 249}
    with pytest.raises(TaskExists):
        await ledger.create_tasks([*(Task(name="new") for _ in range(249)), tasks[0]])
    twice = Task(name="twice")
    with pytest.raises(TaskExists):
        await ledger.create_tasks([twice, twice])
    assert await ledger.count_tasks() == 250
    assert await ledger.create_tasks([]) == 0


async def test_what_is_missing_is_said_to_be_missing(ledgers: LedgerFabric) -> None:
    """Defect 26: completing an unknown id succeeded."""
    ledger = await ledgers.open()
    for doing in (
        ledger.get_task("nobody"),
        ledger.update_task("nobody", TaskChange(priority=1)),
        ledger.complete_task("nobody"),
        ledger.fail_task("nobody", "x"),
        ledger.cancel_task("nobody"),
        ledger.delete_task("nobody"),
    ):
        with pytest.raises(TaskMissing, match="nobody"):
            await doing
    assert await ledger.history("nobody") == []


@pytest.mark.parametrize("before", list(TaskStatus))
async def test_every_transition_is_made_or_refused(ledgers: LedgerFabric, before: TaskStatus) -> None:
    ledger = await ledgers.open()
    for after in TaskStatus:
        task = await brought_to(ledger, before)
        assert task.status is before
        change = TaskChange(status=after, assigned_to="other")
        if may_follow(before, after):
            changed = await ledger.update_task(task.id, change)
            assert (changed.status, changed.version) == (after, task.version + 1)
            assert (changed.completed_at is None) == (after in OPEN)
        else:
            with pytest.raises(InvalidTransition, match=f"is {before} and cannot become {after}"):
                await ledger.update_task(task.id, change)
            assert await ledger.get_task(task.id) == task


async def test_a_completed_task_is_not_overwritten(ledgers: LedgerFabric) -> None:
    """Defect 26: a failure after the completion overwrote it."""
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="once"))
    done = await ledger.complete_task(task.id, {"answer": 42})
    for doing in (
        ledger.fail_task(task.id, "late"),
        ledger.complete_task(task.id, "again"),
        ledger.cancel_task(task.id),
        ledger.update_task(task.id, TaskChange(output="other")),
    ):
        with pytest.raises(InvalidTransition):
            await doing
    assert await ledger.get_task(task.id) == done
    noted = await ledger.update_task(task.id, TaskChange(metadata={"seen": True}))
    assert (noted.output, noted.metadata, noted.completed_at) == ({"answer": 42}, {"seen": True}, done.completed_at)


async def test_what_is_not_named_stays(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    made = await ledger.create_task(full_task())
    changed = await ledger.update_task(made.id, TaskChange(priority=1))
    assert changed.priority == 1
    assert changed.updated_at > made.updated_at
    for name in Task.__struct_fields__:
        if name not in ("priority", "version", "updated_at"):
            assert getattr(changed, name) == getattr(made, name), name


async def test_an_empty_change_and_an_assignment_to_nobody_are_refused(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    made = await ledger.create_task(Task(name="t"))
    for change in (TaskChange(), TaskChange(status=TaskStatus.ASSIGNED), TaskChange(priority=99)):
        with pytest.raises(LedgerError):
            await ledger.update_task(made.id, change)
    assert await ledger.get_task(made.id) == made


async def test_history_tells_every_change(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    task = await brought_to(ledger, TaskStatus.IN_PROGRESS)
    await ledger.fail_task(task.id, "no luck")
    await ledger.update_task(task.id, TaskChange(status=TaskStatus.PENDING, error=""))
    await ledger.complete_task(task.id)
    told = await ledger.history(task.id)
    assert [entry.version for entry in told] == [1, 2, 3, 4, 5, 6]
    assert [(entry.before, str(entry.status)) for entry in told] == [
        ("", "pending"),
        ("pending", "assigned"),
        ("assigned", "in_progress"),
        ("in_progress", "failed"),
        ("failed", "pending"),
        ("pending", "completed"),
    ]
    assert [entry.assigned_to for entry in told] == ["", "coder", "coder", "coder", "", ""]
    assert told[3].error == "no luck"
    assert [entry.at for entry in told] == sorted(entry.at for entry in told)
    assert await ledger.history(task.id, after_version=4, limit=1) == told[4:5]


async def test_deleting_takes_everything_along(ledgers: LedgerFabric) -> None:
    from hivewire.coordination.ledger import ProgressEntry

    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    await ledger.record_progress(ProgressEntry(task_id=task.id, action="a"))
    await ledger.delete_task(task.id)
    assert await ledger.progress(task.id) == []
    assert await ledger.history(task.id) == []
    with pytest.raises(TaskMissing):
        await ledger.get_task(task.id)
    again = await ledger.create_task(Task(name="again", id=task.id))
    assert (await ledger.get_task(task.id)) == again
