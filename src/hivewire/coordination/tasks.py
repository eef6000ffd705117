"""What somebody wants done, and what became of it."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from hivewire.errors import CoordinationError, duration_s
from hivewire.ids import new_id

TaskState = Literal["completed", "failed", "cancelled"]


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants done. `id` names the run: the same id again is the same run."""

    name: str
    description: str = ""
    type: str = ""
    priority: int = 5
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    id: str = msgspec.field(default_factory=new_id)


_KINDS: Final = {"id": str, "name": str, "description": str, "type": str, "priority": int, "input": dict}


def check_request(request: object, timeout_s: object) -> None:
    """Raises `CoordinationError` or `MessageError` for what a run could not be made of."""
    if not isinstance(request, TaskRequest):
        raise CoordinationError(f"a hivewire.TaskRequest is carried out, not {type(request).__name__}")
    for name, kind in _KINDS.items():
        value = getattr(request, name)
        if not isinstance(value, kind):
            raise CoordinationError(f"the {name} of a task is of type {kind.__name__}, not {type(value).__name__}")
    if timeout_s is not None:
        duration_s(timeout_s, "timeout_s")


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
