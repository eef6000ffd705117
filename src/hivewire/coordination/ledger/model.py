"""What a ledger holds: tasks, their progress and history, and who owns what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hivewire.errors import LedgerError
from hivewire.ids import new_id
from hivewire.rules.task_states import TaskStatus

MOST_LISTED: Final = 10_000
"""The largest `limit` of one page."""

SortBy = Literal["created_at", "updated_at", "priority"]
SortOrder = Literal["asc", "desc"]
_SORTS: Final = ("created_at", "updated_at", "priority")


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work as the ledger knows it. `name` alone must be given; the rest may grow by and by.

    Times are seconds since the epoch by the ledger's clock. `version` is 1 when the task is created and
    rises with every change. `parent_id` names the task (the run) of which this one is a part.
    """

    name: str
    id: str = msgspec.field(default_factory=new_id)
    description: str = ""
    type: str = ""
    priority: int = 5
    assigned_to: str = ""
    created_by: str = ""
    parent_id: str = ""
    dependencies: tuple[str, ...] = ()
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    output: Any = None
    status: TaskStatus = TaskStatus.PENDING
    error: str = ""
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    completed_at: float | None = None


class TaskChange(msgspec.Struct, frozen=True, kw_only=True):
    """What an update changes; everything that is not named stays."""

    status: TaskStatus | UnsetType = UNSET
    assigned_to: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    description: str | UnsetType = UNSET
    dependencies: tuple[str, ...] | UnsetType = UNSET
    input: dict[str, Any] | UnsetType = UNSET
    output: Any | UnsetType = UNSET
    error: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right of an owner to write. Who takes the name over gets a higher `token`; writes fenced with a
    lower one are refused (`LeaseLost`), however late they come."""

    name: str
    owner: str
    token: int
    until: float


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold for a write to happen: the task still has this `version`; the `lease` is still held."""

    version: int | None = None
    lease: Lease | None = None


class ProgressEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the work on a task. Without `step` it becomes the next one."""

    task_id: str
    action: str
    id: str = msgspec.field(default_factory=new_id)
    agent_id: str = ""
    step: int | None = None
    description: str = ""
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    output: Any = None
    status: str = ""
    error: str = ""
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: float = 0.0


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What one change made of a task. `before` is empty for its creation."""

    task_id: str
    version: int
    before: str
    status: TaskStatus
    assigned_to: str
    error: str
    at: float


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks, in which order. Limits of time are exclusive. Raises `LedgerError` for what is no filter.

    Pages: `following(page)` is the filter of the next one. It costs the same at any depth; `offset` reads and
    throws away what it skips.
    """

    statuses: tuple[TaskStatus, ...] = ()
    assigned_to: str | None = None
    created_by: str | None = None
    parent_id: str | None = None
    created_after: float | None = None
    created_before: float | None = None
    updated_after: float | None = None
    updated_before: float | None = None
    limit: int = 100
    offset: int = 0
    sort_by: SortBy = "created_at"
    sort_order: SortOrder = "desc"
    after: str | None = None

    def __post_init__(self) -> None:
        if self.sort_by not in _SORTS:
            raise LedgerError(f"tasks cannot be sorted by {self.sort_by!r:.80}; choose {', '.join(_SORTS)}")
        if self.sort_order not in ("asc", "desc"):
            raise LedgerError(f"the order is asc or desc, not {self.sort_order!r:.80}")
        if type(self.limit) is not int or not 1 <= self.limit <= MOST_LISTED:
            raise LedgerError(f"limit is a whole number from 1 to {MOST_LISTED:,}, not {self.limit!r:.80}")
        if type(self.offset) is not int or not 0 <= self.offset < 2**62:
            raise LedgerError(f"offset is a whole number, 0 or more, not {self.offset!r:.80}")
        for status in self.statuses:
            if status not in TaskStatus.__members__.values():
                raise LedgerError(f"there is no status {status!r:.80}; there are {', '.join(TaskStatus)}")
        self.position()

    def following(self, page: Sequence[Task]) -> TaskFilter | None:
        """The filter of the page after this one; None when this one was the last."""
        if len(page) < self.limit:
            return None
        last = page[-1]
        cursor = f"{getattr(last, self.sort_by)!r}/{last.id}"
        return msgspec.structs.replace(self, after=cursor, offset=0)

    def position(self) -> tuple[float, str] | None:
        """Where the page begins: the value of `sort_by` and the id of the task before it."""
        if self.after is None:
            return None
        value, found, task_id = self.after.partition("/")
        try:
            return (int if self.sort_by == "priority" else float)(value), task_id if found else task_id[0]
        except (ValueError, IndexError):
            raise LedgerError(f"{self.after!r:.80} is not a place in a list sorted by {self.sort_by}") from None


class LedgerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of tasks by status, and what they take. `oldest` and `newest` are times of creation."""

    total: int = 0
    pending: int = 0
    assigned: int = 0
    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total_progress: int = 0
    oldest: float | None = None
    newest: float | None = None
    storage_size_bytes: int = 0


class LedgerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """`durability`: `volatile` or `disk`. `schema` is the number of the last migration."""

    ok: bool
    kind: str
    durability: str
    detail: str = ""
    schema: int = 0
    latency_s: float = 0.0
