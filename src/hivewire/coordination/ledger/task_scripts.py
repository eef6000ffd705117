"""Each operation on tasks, as a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from hivewire.coordination.ledger.model import Guard, HistoryEntry, LedgerStats, Task, TaskChange, TaskFilter
from hivewire.coordination.ledger.rows import (
    CHANGED,
    HISTORY,
    TASK,
    changed_columns,
    check_kind,
    checked_id,
    history_of,
    new_row,
    task_of,
)
from hivewire.coordination.ledger.store import Given, Query, Row, Script
from hivewire.errors import InvalidTransition, LeaseLost, TaskExists, TaskMissing, VersionConflict
from hivewire.rules.task_states import FINISHED, OPEN, TaskStatus, sources

_TRIES: Final = 10
_PURGED_AT_ONCE: Final = 1_000
_ID: Final = "a task's id"
_LEASE: Final = (("lease", "text"), ("token", "bigint"))
_HELD: Final = "EXISTS (SELECT 1 FROM leases WHERE name = ${} AND token = ${} FOR SHARE)"
_GIVEN_HELD: Final = (
    "(given.lease IS NULL OR EXISTS (SELECT 1 FROM leases WHERE name = given.lease AND token = given.token FOR SHARE))"
)
_COLUMNS: Final = {
    "id": "text",
    "name": "text",
    "description": "text",
    "type": "text",
    "priority": "integer",
    "assigned_to": "text",
    "created_by": "text",
    "parent_id": "text",
    "dependencies": "json",
    "input": "json",
    "output": "json",
    "status": "text",
    "error": "text",
    "metadata": "json",
    "change": "text",
}
_INSERTED: Final = ", ".join(_COLUMNS)
_RETURNED: Final = ", ".join(f"tasks.{name}" for name in [*TASK.split(", "), "change"])

_CREATED: Final = (*_COLUMNS.items(), *_LEASE)
_CREATE: Final = (
    f"INSERT INTO tasks ({_INSERTED}, version, created_at, updated_at) "
    f"SELECT {', '.join(f'given.{name}' for name in _COLUMNS)}, 1, hivewire_begun(), hivewire_begun() "
    f"FROM hivewire_given() WHERE {_GIVEN_HELD} ON CONFLICT (id) DO NOTHING RETURNING {_RETURNED}"
)

_SOURCES: Final = {str(status): sources(status) for status in TaskStatus}
_FINISHED: Final = ", ".join(f"'{status}'" for status in FINISHED)
_SET: Final = (*CHANGED, "status")
_UPDATED: Final = (
    *(("id", "text"), ("change", "text"), ("version", "bigint"), ("allowed", "text")),
    *((name, _COLUMNS[name]) for name in _SET),
    *_LEASE,
)
_UPDATE: Final = (
    f"UPDATE tasks SET {', '.join(f'{name} = coalesce(given.{name}, tasks.{name})' for name in _SET)}, "
    "completed_at = CASE WHEN given.status IS NULL THEN tasks.completed_at "
    f"WHEN given.status IN ({_FINISHED}) THEN hivewire_now() END, "
    "change = given.change, version = tasks.version + 1, updated_at = hivewire_now() "
    "FROM hivewire_given() WHERE tasks.id = given.id AND tasks.change <> given.change "
    "AND (given.version IS NULL OR tasks.version = given.version) "
    f"AND given.allowed LIKE '%' || tasks.status || '%' AND {_GIVEN_HELD} RETURNING {_RETURNED}"
)


class Arguments:
    """The arguments of one statement; `add` returns the place of a value, as it is written there."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def held(self, guard: Guard) -> str:
        """The condition that the guard's lease is still held, for after AND; nothing without a lease."""
        if guard.lease is None:
            return ""
        name, token = self.add(guard.lease.name), self.add(guard.lease.token)
        return f" AND {_HELD.replace('${}', name, 1).replace('${}', token, 1)}"


def create(task: Task, guard: Guard, change: str) -> Script[Task]:
    statement = Given(_CREATE, _CREATED, (*new_row(task, change), *_lease(guard)), change, task.id)
    for _ in range(_TRIES):
        rows = yield statement
        if rows:
            return task_of(rows[0])
        found = yield Query(f"SELECT {TASK}, change FROM tasks WHERE id = $1", [task.id])
        if found and found[0][-1] == change:  # an earlier try of this very call
            return task_of(found[0])
        yield from _check_lease(guard)
        if found:
            raise TaskExists(f"there is a task {task.id} already; choose another id")
    return _give_up(task.id)


def _lease(guard: Guard) -> tuple[str | None, int | None]:
    return (None, None) if guard.lease is None else (guard.lease.name, guard.lease.token)


def create_many(tasks: Sequence[Task], change: str, at_once: int) -> Script[int]:
    for start in range(0, len(tasks), at_once):
        part = tasks[start : start + at_once]
        arguments = Arguments()
        rows = [
            f"({', '.join(map(arguments.add, new_row(task, change)))}, 1, hivewire_begun(), hivewire_begun())"
            for task in part
        ]
        made = yield Query(
            f"INSERT INTO tasks ({_INSERTED}, version, created_at, updated_at) VALUES {', '.join(rows)} "
            "ON CONFLICT (id) DO NOTHING RETURNING id",
            arguments.values,
        )
        if len(made) < len(part):
            yield from _check_ours(part, made, change)
    return len(tasks)


def _check_ours(tasks: Sequence[Task], made: Sequence[Row], change: str) -> Script[None]:
    """Those that were not inserted are there from an earlier try of this very call; else raise."""
    ids = {task.id for task in tasks} - {task_id for (task_id,) in made}
    arguments = Arguments()
    places = ", ".join(map(arguments.add, sorted(ids)))
    ours: Sequence[Row] = ()
    if ids:
        condition = f"id IN ({places}) AND change = {arguments.add(change)}"
        ours = yield Query(f"SELECT id FROM tasks WHERE {condition}", arguments.values)
    strange = ids - {task_id for (task_id,) in ours}
    if strange or len({task.id for task in tasks}) < len(tasks):
        known = min(strange) if strange else "twice in the list"
        raise TaskExists(f"there is a task {known} already; none of the {len(tasks)} was created")


def get(task_id: str) -> Script[Task]:
    rows = yield Query(f"SELECT {TASK} FROM tasks WHERE id = $1", [checked_id(task_id, _ID)])
    if not rows:
        raise _missing(task_id)
    return task_of(rows[0])


def marks(ids: Sequence[str]) -> Script[dict[str, tuple[int, float]]]:
    """Version and time of the last change of those of the tasks that there are: no two states have the same."""
    arguments = Arguments()
    places = ", ".join(map(arguments.add, ids))
    rows = yield Query(f"SELECT id, version, updated_at FROM tasks WHERE id IN ({places})", arguments.values)
    return {task_id: (version, updated_at) for task_id, version, updated_at in rows}


def update(task_id: str, change: TaskChange, guard: Guard, mark: str) -> Script[Task]:
    checked_id(task_id, _ID)
    columns = changed_columns(change)
    allowed = _allowed(columns)
    values = (task_id, mark, guard.version, " ".join(allowed), *map(columns.get, _SET), *_lease(guard))
    statement = Given(_UPDATE, _UPDATED, values, mark, task_id)
    for _ in range(_TRIES):
        rows = yield statement
        if rows:
            return task_of(rows[0])
        done = yield from _why_not(task_id, guard, mark, allowed, columns.get("status"))
        if done is not None:
            return done
    return _give_up(task_id)


def _allowed(columns: dict[str, Any]) -> Sequence[TaskStatus]:
    """The statuses in which a task may be changed so."""
    if "status" in columns:
        return _SOURCES[columns["status"]]
    return tuple(TaskStatus) if columns.keys() == {"metadata"} else OPEN


def _why_not(
    task_id: str, guard: Guard, mark: str, allowed: Sequence[TaskStatus], wanted: str | None
) -> Script[Task | None]:
    """Raise the reason why a change was not made; the task, if an earlier try of this very call has made it; None
    if there is no reason any more."""
    found = yield Query(f"SELECT {TASK} FROM tasks WHERE id = $1", [task_id])
    if not found:
        raise _missing(task_id)
    task = task_of(found[0])
    if (yield Query("SELECT 1 FROM task_history WHERE task_id = $1 AND change = $2", [task_id, mark])):
        return task
    yield from _check_lease(guard)
    if guard.version is not None and task.version != guard.version:
        raise VersionConflict(
            f"task {task_id} has version {task.version}, not {guard.version}: it was changed meanwhile; read it again"
        )
    if task.status not in allowed:
        what = f"become {wanted}" if wanted else "be changed, but for its metadata"
        raise InvalidTransition(f"task {task_id} is {task.status} and cannot {what}")
    return None


def delete(task_id: str, guard: Guard, tries: Iterator[int]) -> Script[None]:
    """`tries` gives 0 the first time, so that what an earlier try has deleted is not missed by the next one."""
    is_again = next(tries) > 0
    arguments = Arguments()
    where = f"id = {arguments.add(checked_id(task_id, _ID))}"
    if guard.version is not None:
        where += f" AND version = {arguments.add(guard.version)}"
    where += arguments.held(guard)
    if (yield Query(f"DELETE FROM tasks WHERE {where} RETURNING id", arguments.values)):
        return
    yield from _check_lease(guard)
    found = yield Query("SELECT version FROM tasks WHERE id = $1", [task_id])
    if not found and is_again:
        return
    if not found:
        raise _missing(task_id)
    raise VersionConflict(f"task {task_id} has version {found[0][0]}, not {guard.version}; nothing was deleted")


def listing(wanted: TaskFilter) -> Script[list[Task]]:
    check_kind(wanted, TaskFilter)
    arguments = Arguments()
    order = f"{wanted.sort_by} {wanted.sort_order}, id {wanted.sort_order}"
    where = _conditions(wanted, arguments)
    position = wanted.position()
    if position is not None:
        sign = ">" if wanted.sort_order == "asc" else "<"
        value, task_id = map(arguments.add, position)
        where.append(f"({wanted.sort_by}, id) {sign} ({value}, {task_id})")
    statement = f"SELECT {TASK} FROM tasks{_where(where)} ORDER BY {order} LIMIT {arguments.add(wanted.limit)}"
    if wanted.offset:
        statement += f" OFFSET {arguments.add(wanted.offset)}"
    rows = yield Query(statement, arguments.values)
    return [task_of(row) for row in rows]


def counting(wanted: TaskFilter) -> Script[int]:
    check_kind(wanted, TaskFilter)
    arguments = Arguments()
    rows = yield Query(f"SELECT count(*) FROM tasks{_where(_conditions(wanted, arguments))}", arguments.values)
    return int(rows[0][0])


def _conditions(wanted: TaskFilter, arguments: Arguments) -> list[str]:
    where = []
    if wanted.statuses:
        where.append(f"status IN ({', '.join(arguments.add(str(status)) for status in wanted.statuses)})")
    for column in ("assigned_to", "created_by", "parent_id"):
        value = getattr(wanted, column)
        if value is not None:
            # The index leaves out the many that are empty, and is used only if it is said that this one is not.
            where.append(f"{column} = {arguments.add(value)}" + (f" AND {column} <> ''" if value else ""))
    for field, sign in (("after", ">"), ("before", "<")):
        for column in ("created", "updated"):
            value = getattr(wanted, f"{column}_{field}")
            if value is not None:
                where.append(f"{column}_at {sign} {arguments.add(float(value))}")
    return where


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def history(task_id: str, after_version: int, limit: int) -> Script[list[HistoryEntry]]:
    rows = yield Query(
        f"SELECT {HISTORY} FROM task_history WHERE task_id = $1 AND version > $2 ORDER BY version LIMIT $3",
        [checked_id(task_id, _ID), after_version, limit],
    )
    return [history_of(row) for row in rows]


def purge_some(older_than_s: float, statuses: Sequence[TaskStatus]) -> Script[int]:
    """Delete at most `_PURGED_AT_ONCE` of them, so that nobody waits long for the rows or the file."""
    arguments = Arguments()
    age = arguments.add(older_than_s)
    named = ", ".join(arguments.add(str(status)) for status in statuses)
    rows = yield Query(
        "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE completed_at IS NOT NULL AND "
        f"completed_at < hivewire_begun() - {age} AND status IN ({named}) ORDER BY completed_at "
        f"LIMIT {_PURGED_AT_ONCE}) RETURNING 1",
        arguments.values,
    )
    return len(rows)


def stats() -> Script[LedgerStats]:
    counts = yield Query("SELECT status, count(*) FROM tasks GROUP BY status")
    times = yield Query("SELECT (SELECT min(created_at) FROM tasks), (SELECT max(created_at) FROM tasks)")
    steps = yield Query("SELECT count(*) FROM task_progress")
    return LedgerStats(
        total=sum(count for _, count in counts),
        **{str(TaskStatus(status)): count for status, count in counts},
        total_progress=steps[0][0],
        oldest=times[0][0],
        newest=times[0][1],
    )


def _check_lease(guard: Guard) -> Script[None]:
    lease = guard.lease
    if lease is not None and not (
        yield Query("SELECT 1 FROM leases WHERE name = $1 AND token = $2", [lease.name, lease.token])
    ):
        raise LeaseLost(f"{lease.owner} does not own {lease.name} any more; nothing was written")


def check_lease(guard: Guard) -> Script[None]:
    """Raise `LeaseLost` when the guard's lease is not held."""
    yield from _check_lease(guard)


def _missing(task_id: str) -> TaskMissing:
    return TaskMissing(f"there is no task {task_id!r:.300} in the ledger")


def _give_up(task_id: str) -> NoReturn:
    raise VersionConflict(f"task {task_id} is changed by others all the time; nothing was written, try again")
