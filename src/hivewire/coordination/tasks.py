"""What somebody wants done, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from hivewire.codec.values import check_json
from hivewire.errors import CoordinationError, LedgerError, MessageError, duration_s
from hivewire.ids import new_id

if TYPE_CHECKING:
    from hivewire.rules.plan_state import RunState

TaskState = Literal["completed", "failed", "cancelled"]


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants done. `id` names the run: the same id again is the same run."""

    name: str
    description: str = ""
    type: str = ""
    priority: int = 5
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    id: str = msgspec.field(default_factory=new_id)


_MOST_VALUES: Final = 1_000_000
_KINDS: Final = {"id": str, "name": str, "description": str, "type": str, "priority": int, "input": dict}


def check_request(request: object, timeout_s: object) -> None:
    """Raises `CoordinationError` or `MessageError` for what a run could not be made of."""
    if not isinstance(request, TaskRequest):
        raise CoordinationError(f"a hivewire.TaskRequest is carried out, not {type(request).__name__}")
    for name, kind in _KINDS.items():
        value = getattr(request, name)
        if not isinstance(value, kind):
            raise CoordinationError(f"the {name} of a task is of type {kind.__name__}, not {type(value).__name__}")
        check_kept(value, f"the {name} of a task")
    if timeout_s is not None:
        duration_s(timeout_s, "timeout_s")


def check_kept(value: object, what: str) -> None:
    """What is no JSON would be refused when the first subtask is sent, or be something else after a takeover."""
    try:
        check_json(value, _MOST_VALUES)
        msgspec.json.encode(value)
    except (MessageError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise CoordinationError(f"{what} cannot be kept as JSON: {error}") from error


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a plan must be made anew: what failed, what is finished, and what is known by now."""

    errors: tuple[str, ...]
    finished: dict[str, Any] = msgspec.field(default_factory=dict)
    facts: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task. `output` has the output of every subtask that is done, also when the run has failed."""

    task_id: str
    status: TaskState
    output: dict[str, Any]
    error: str = ""
    subtasks: dict[str, str] = {}
    completed_at: float = 0.0


OUTCOMES: Final[dict[str, TaskState]] = {"done": "completed", "failed": "failed", "cancelled": "cancelled"}


def result_of(state: RunState) -> TaskResult:
    if not state.is_finished:
        raise LedgerError(f"run {state.header.run} has not ended")
    return TaskResult(
        task_id=state.header.run,
        status=OUTCOMES[state.header.status],
        output={name: row.output for name, row in state.rows.items() if row.status == "done"},
        error=state.header.reason if state.header.status != "done" else "",
        subtasks={name: row.status for name, row in state.rows.items()},
        completed_at=state.header.ended_at,
    )
