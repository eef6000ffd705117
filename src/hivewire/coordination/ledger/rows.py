"""Rows of the tables and what they stand for, both ways. What cannot be kept is refused here, for every store alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET

from hivewire.codec.values import check_json, shown
from hivewire.coordination.ledger.model import HistoryEntry, ProgressEntry, Task, TaskChange
from hivewire.coordination.ledger.store import Row
from hivewire.errors import LedgerError, MessageError
from hivewire.rules.task_states import FINISHED, TaskStatus

MOST_VALUES: Final = 1_000_000
MOST_BYTES: Final = 64 * 1024 * 1024
"""The largest input, output or metadata, as JSON."""
MOST_ID_BYTES: Final = 256

TASK: Final = (
    "id, name, description, type, priority, assigned_to, created_by, parent_id, dependencies, input, output, status, "
    "error, metadata, version, created_at, updated_at, completed_at"
)
PROGRESS: Final = "id, task_id, agent_id, step, action, description, input, output, status, error, metadata, created_at"
HISTORY: Final = "task_id, version, before, status, assigned_to, error, at"

_decode = msgspec.json.decode


def task_of(row: Row) -> Task:
    """The task in a row of the columns `TASK`."""
    return Task(
        id=row[0],
        name=row[1],
        description=row[2],
        type=row[3],
        priority=row[4],
        assigned_to=row[5],
        created_by=row[6],
        parent_id=row[7],
        dependencies=tuple(_decode(row[8])),
        input=_decode(row[9]),
        output=_decode(row[10]),
        status=TaskStatus(row[11]),
        error=row[12],
        metadata=_decode(row[13]),
        version=row[14],
        created_at=row[15],
        updated_at=row[16],
        completed_at=row[17],
    )


def check_kind(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise LedgerError(f"a {kind.__name__} is wanted here, not {shown(value)}")


def new_row(task: Task, change: str) -> list[Any]:
    """The arguments of an insert: the columns `TASK` up to `metadata`, then `change`."""
    check_kind(task, Task)
    checked_id(task.id, "a task's id")
    if task.status in FINISHED:
        raise LedgerError(f"a task cannot begin as {task.status}: create it, then complete, fail or cancel it")
    return [
        task.id,
        _text(task.name, "name", least=1),
        _text(task.description, "description"),
        _text(task.type, "type"),
        _priority(task.priority),
        _text(task.assigned_to, "assigned_to"),
        _text(task.created_by, "created_by"),
        _text(task.parent_id, "parent_id"),
        _names(task.dependencies),
        _object(task.input, "input"),
        _json(task.output, "output"),
        _status(task.status),
        stored_error(task.error),
        _object(task.metadata, "metadata"),
        change,
    ]


def progress_row(entry: ProgressEntry) -> list[Any]:
    """The columns `PROGRESS` but for the last one."""
    check_kind(entry, ProgressEntry)
    checked_id(entry.id, "an entry's id")
    if entry.step is not None and (type(entry.step) is not int or not 0 < entry.step < 2**31):
        raise LedgerError(f"a step is a whole number from 1, not {shown(entry.step)}")
    return [
        entry.id,
        entry.task_id,
        _text(entry.agent_id, "agent_id"),
        entry.step,
        _text(entry.action, "action", least=1),
        _text(entry.description, "description"),
        _object(entry.input, "input"),
        _json(entry.output, "output"),
        _text(entry.status, "status"),
        stored_error(entry.error),
        _object(entry.metadata, "metadata"),
    ]


def progress_of(row: Row) -> ProgressEntry:
    """The entry in a row of the columns `PROGRESS`."""
    return ProgressEntry(
        id=row[0],
        task_id=row[1],
        agent_id=row[2],
        step=row[3],
        action=row[4],
        description=row[5],
        input=_decode(row[6]),
        output=_decode(row[7]),
        status=row[8],
        error=row[9],
        metadata=_decode(row[10]),
        created_at=row[11],
    )


def history_of(row: Row) -> HistoryEntry:
    """The entry in a row of the columns `HISTORY`."""
    task_id, version, before, status, assigned_to, error, at = row
    return HistoryEntry(
        task_id=task_id,
        version=version,
        before=before,
        status=TaskStatus(status),
        assigned_to=assigned_to,
        error=error,
        at=at,
    )


def checked_id(value: Any, what: str) -> str:
    """An id as it may be stored and looked for: text of 1 to 256 bytes, without NUL."""
    text = _text(value, what, least=1)
    if len(text.encode()) > MOST_ID_BYTES:
        raise LedgerError(f"{what} has at most {MOST_ID_BYTES} bytes, not {len(text.encode()):,}")
    return text


def _text(value: Any, what: str, least: int = 0) -> str:
    if type(value) is str and value.isascii() and "\0" not in value and least <= len(value) <= 1_000:
        return value  # most are
    if not isinstance(value, str) or len(value) < least:
        raise LedgerError(f"{what} is text{' that is not empty' if least else ''}, not {shown(value)}")
    if "\0" in value or not _is_unicode(value):
        raise LedgerError(f"{what} has a NUL or half a character in it: {shown(value)}")
    if len(value) > MOST_BYTES // 4:
        raise LedgerError(f"{what} is too long: {len(value):,} characters")
    return value


def stored_error(value: Any) -> str:
    """Errors come from anywhere: what cannot be stored in them is replaced, not refused."""
    text = value if isinstance(value, str) else str(value)
    return text[: MOST_BYTES // 4].replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _status(value: Any) -> str:
    if value not in TaskStatus.__members__.values():
        raise LedgerError(f"there is no status {shown(value)}; there are {', '.join(TaskStatus)}")
    return str(value)


def _priority(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10:
        raise LedgerError(f"a priority is a whole number from 1 to 10, not {shown(value)}")
    return int(value)


def _names(values: Sequence[Any]) -> str:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise LedgerError(f"dependencies are a list of ids, not {shown(values)}")
    return _json([_text(value, "a dependency", least=1) for value in values], "dependencies")


def _object(value: Any, what: str) -> str:
    if not isinstance(value, dict):
        raise LedgerError(f"{what} is an object (a dict), not {shown(value)}")
    return _json(value, what)


def _json(value: Any, what: str) -> str:
    try:
        check_json(value, MOST_VALUES)
        text = msgspec.json.encode(value)
    except (MessageError, UnicodeError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise LedgerError(f"{what} cannot be kept as JSON: {error}") from error
    if len(text) > MOST_BYTES:
        raise LedgerError(f"{what} has {len(text):,} bytes as JSON; at most {MOST_BYTES:,} are kept")
    return text.decode()


CHANGED: Final[dict[str, Callable[[Any], Any]]] = {
    "assigned_to": lambda value: _text(value, "assigned_to"),
    "priority": _priority,
    "description": lambda value: _text(value, "description"),
    "dependencies": _names,
    "input": lambda value: _object(value, "input"),
    "output": lambda value: _json(value, "output"),
    "error": stored_error,
    "metadata": lambda value: _object(value, "metadata"),
}


def changed_columns(change: TaskChange) -> dict[str, Any]:
    """What to set, by column; the status last of all."""
    check_kind(change, TaskChange)
    columns = {
        name: as_stored(value) for name, as_stored in CHANGED.items() if (value := getattr(change, name)) is not UNSET
    }
    if change.status is not UNSET:
        status = _status(change.status)
        if status == TaskStatus.ASSIGNED and not columns.get("assigned_to"):
            raise LedgerError("to assign a task, name the agent: TaskChange(status=…, assigned_to=…)")
        if status == TaskStatus.PENDING:
            columns.setdefault("assigned_to", "")
        columns["status"] = status
    if not columns:
        raise LedgerError("the change is empty: name at least one field")
    return columns


def as_json(value: Any) -> str:
    """What was checked before it came here."""
    return msgspec.json.encode(value).decode()
