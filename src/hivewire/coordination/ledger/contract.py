"""The ledger: what was asked, what became of it, step by step, and who may write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hivewire.coordination.ledger.model import (
    Guard,
    HistoryEntry,
    Lease,
    LedgerHealth,
    LedgerStats,
    ProgressEntry,
    Task,
    TaskChange,
    TaskFilter,
)
from hivewire.rules.task_states import FINISHED, TaskStatus

UNGUARDED = Guard()


class Ledger(ABC):
    """Tasks and their progress. Each change is one transaction and leaves a row in the task's history.

    A change that returns is stored, as durably as `health().durability` says. One that raises a `LedgerError`
    changed nothing. A store that is away for a moment is waited for, and the change happens once all the same;
    `ConnectionLost` when it stays away: then it may have happened or not.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect and check the tables. Raises `MigrationNeeded` when they are not this version's. Idempotent."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent."""

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- tasks

    @abstractmethod
    async def create_task(self, task: Task, guard: Guard = UNGUARDED) -> Task:
        """Raises `TaskExists`. The result has version and times."""

    @abstractmethod
    async def create_tasks(self, tasks: Sequence[Task]) -> int:
        """All of them or none; returns how many. Raises `TaskExists`."""

    @abstractmethod
    async def get_task(self, task_id: str) -> Task:
        """Raises `TaskMissing`."""

    @abstractmethod
    async def update_task(self, task_id: str, change: TaskChange, guard: Guard = UNGUARDED) -> Task:
        """Raises `TaskMissing`, `InvalidTransition`, `VersionConflict` or `LeaseLost`.

        What is finished takes no change but of its metadata; what failed may be made pending again.
        """

    async def complete_task(self, task_id: str, output: Any = None, guard: Guard = UNGUARDED) -> Task:
        """The task is done. Raises as `update_task`: who comes second gets `InvalidTransition`."""
        return await self.update_task(task_id, TaskChange(status=TaskStatus.COMPLETED, output=output, error=""), guard)

    async def fail_task(self, task_id: str, error: str, guard: Guard = UNGUARDED) -> Task:
        """The task has failed. Raises as `update_task`."""
        return await self.update_task(task_id, TaskChange(status=TaskStatus.FAILED, error=error), guard)

    async def cancel_task(self, task_id: str, reason: str = "", guard: Guard = UNGUARDED) -> Task:
        """Nobody wants the task any more. Raises as `update_task`."""
        return await self.update_task(task_id, TaskChange(status=TaskStatus.CANCELLED, error=reason), guard)

    @abstractmethod
    async def delete_task(self, task_id: str, guard: Guard = UNGUARDED) -> None:
        """With its progress and history. Raises `TaskMissing`, `VersionConflict` or `LeaseLost`."""

    @abstractmethod
    async def list_tasks(self, wanted: TaskFilter | None = None) -> list[Task]:
        """A page of tasks, the latest first unless the filter says otherwise."""

    @abstractmethod
    async def count_tasks(self, wanted: TaskFilter | None = None) -> int:
        """How many tasks the filter lets through, whatever its limit, offset and place."""

    async def pending_tasks(self, limit: int = 100) -> list[Task]:
        """What waits, the most urgent first."""
        return await self.list_tasks(TaskFilter(statuses=(TaskStatus.PENDING,), sort_by="priority", limit=limit))

    async def tasks_by_status(self, status: TaskStatus, limit: int = 100) -> list[Task]:
        """The latest tasks of a status."""
        return await self.list_tasks(TaskFilter(statuses=(status,), limit=limit))

    @abstractmethod
    async def history(self, task_id: str, *, after_version: int = 0, limit: int = 1_000) -> list[HistoryEntry]:
        """Every change of a task, the first one first. Empty for a task that there is not."""

    # -- progress

    @abstractmethod
    async def record_progress(self, entry: ProgressEntry, guard: Guard = UNGUARDED) -> ProgressEntry:
        """Keep a step; the same `id` again is the same step. Raises `TaskMissing`, `LeaseLost`, or `LedgerError`
        for a step that there is already."""

    @abstractmethod
    async def progress(self, task_id: str, *, after_step: int = 0, limit: int = 1_000) -> list[ProgressEntry]:
        """The steps of a task in their order."""

    @abstractmethod
    async def latest_progress(self, task_id: str) -> ProgressEntry | None:
        """The step with the highest number."""

    async def current_step(self, task_id: str) -> int:
        """The number of the latest step; 0 before the first."""
        latest = await self.latest_progress(task_id)
        return 0 if latest is None or latest.step is None else latest.step

    @abstractmethod
    async def clear_progress(self, task_id: str) -> int:
        """Forget the steps of a task; returns how many there were."""

    # -- keeping house

    @abstractmethod
    async def purge_completed(self, older_than_s: float, statuses: Sequence[TaskStatus] = FINISHED) -> int:
        """Delete tasks that were finished so long ago, with progress and history; returns how many. Leases that ended
        so long ago are forgotten, too."""

    @abstractmethod
    async def purge_progress(self, older_than_s: float) -> int:
        """Delete steps so old, of tasks in whatever status; returns how many."""

    @abstractmethod
    async def stats(self) -> LedgerStats:
        """Counted now. Reads an index of all tasks: not for every second at millions of them."""

    @abstractmethod
    async def health(self) -> LedgerHealth:
        """Whether the store answers, within a few seconds. Never raises for a store that is away."""

    # -- ownership

    @abstractmethod
    async def acquire(self, name: str, owner: str, lease_s: float) -> Lease | None:
        """Own `name` for `lease_s` seconds by the ledger's clock; None while another owner holds it.

        An owner that asks again gets a new token, and its old one is worth nothing.
        """

    @abstractmethod
    async def renew(self, lease: Lease, lease_s: float) -> Lease:
        """Hold it for `lease_s` seconds from now. Raises `LeaseLost` when it was taken over."""

    @abstractmethod
    async def release(self, lease: Lease) -> None:
        """Let others have it at once. Nothing happens when it was lost."""
