"""Which status of a task may follow which."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TaskStatus(StrEnum):
    """Where a task stands. The names are the reference's."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN: Final = (TaskStatus.PENDING, TaskStatus.ASSIGNED, TaskStatus.IN_PROGRESS)
FINISHED: Final = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)

FOLLOWERS: Final[dict[TaskStatus, frozenset[TaskStatus]]] = {
    TaskStatus.PENDING: frozenset({TaskStatus.ASSIGNED, TaskStatus.IN_PROGRESS, *FINISHED}),
    # A worker that is given up hands its task back (pending), or the task goes to another one (assigned).
    TaskStatus.ASSIGNED: frozenset(TaskStatus),
    TaskStatus.IN_PROGRESS: frozenset({TaskStatus.PENDING, TaskStatus.ASSIGNED, *FINISHED}),
    TaskStatus.FAILED: frozenset({TaskStatus.PENDING}),  # tried once more, on purpose
    TaskStatus.COMPLETED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}


def may_follow(before: TaskStatus, after: TaskStatus) -> bool:
    """Whether a task may go from the one status to the other.

    >>> may_follow(TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED)
    True
    >>> may_follow(TaskStatus.COMPLETED, TaskStatus.FAILED)
    False
    """
    return after in FOLLOWERS[before]


def sources(after: TaskStatus) -> tuple[TaskStatus, ...]:
    """The statuses from which a task may get to this one."""
    return tuple(before for before in TaskStatus if may_follow(before, after))
