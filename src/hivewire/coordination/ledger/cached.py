"""A ledger that keeps tasks in memory and asks before each use whether they have changed."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from hivewire.coordination.ledger.contract import UNGUARDED, Ledger
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
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.errors import Closed
from hivewire.rules.task_states import FINISHED, TaskStatus

_ASKED_AT_ONCE: Final = 500

Mark = tuple[int, float]


class CachedLedger(Ledger):
    """Any number of processes may write: a read never gives a state that was replaced before the read began.

    What is spared is the task's own bytes, not the question: each `get_task` asks the store for the task's version,
    many in one statement while one is under way. It pays where inputs and outputs are large.
    """

    def __init__(
        self,
        inner: StoredLedger,
        *,
        ttl_s: float = 300.0,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inner = inner
        self._ttl_s = ttl_s
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, tuple[Task, float]] = OrderedDict()
        self._asked: dict[str, list[asyncio.Future[Mark | None]]] = {}
        self._asker: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        asker, self._asker = self._asker, None
        if asker is not None:
            asker.cancel()
            await asyncio.wait([asker])
        self._kept.clear()
        await self.inner.close()

    # -- what the cache is for

    async def get_task(self, task_id: str) -> Task:
        kept = self._kept.get(task_id)
        if kept is not None and self._clock() - kept[1] < self._ttl_s:
            mark = await self._mark(task_id)
            if mark == (kept[0].version, kept[0].updated_at):
                return self._keep(kept[0])
        self._kept.pop(task_id, None)
        return self._keep(await self.inner.get_task(task_id))

    async def _mark(self, task_id: str) -> Mark | None:
        future: asyncio.Future[Mark | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(task_id, []).append(future)
        if self._asker is None or self._asker.done():
            self._asker = asyncio.create_task(self._ask(), name="hivewire-ledger-cache")
        return await future

    async def _ask(self) -> None:
        """One question after another, each for all that came while the one before was under way."""
        while self._asked:
            ids = list(self._asked)[:_ASKED_AT_ONCE]
            batch = {task_id: self._asked.pop(task_id) for task_id in ids}
            waiting = [future for futures in batch.values() for future in futures]
            try:
                marks = await self.inner.marks(ids)
            except asyncio.CancelledError:
                for future in (*waiting, *(future for futures in self._asked.values() for future in futures)):
                    if not future.done():
                        future.set_exception(Closed("read a task: the ledger was closed"))
                raise
            except Exception as error:  # noqa: BLE001 - those who wait get it, whatever it is
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for task_id, futures in batch.items():
                for future in futures:
                    if not future.done():
                        future.set_result(marks.get(task_id))

    def _keep(self, task: Task) -> Task:
        self._kept[task.id] = (task, self._clock())
        self._kept.move_to_end(task.id)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return task

    # -- what goes through

    async def create_task(self, task: Task, guard: Guard = UNGUARDED) -> Task:
        return self._keep(await self.inner.create_task(task, guard))

    async def create_tasks(self, tasks: Sequence[Task]) -> int:
        return await self.inner.create_tasks(tasks)

    async def update_task(self, task_id: str, change: TaskChange, guard: Guard = UNGUARDED) -> Task:
        return self._keep(await self.inner.update_task(task_id, change, guard))

    async def delete_task(self, task_id: str, guard: Guard = UNGUARDED) -> None:
        self._kept.pop(task_id, None)
        await self.inner.delete_task(task_id, guard)

    async def list_tasks(self, wanted: TaskFilter | None = None) -> list[Task]:
        return await self.inner.list_tasks(wanted)

    async def count_tasks(self, wanted: TaskFilter | None = None) -> int:
        return await self.inner.count_tasks(wanted)

    async def history(self, task_id: str, **page: Any) -> list[HistoryEntry]:
        return await self.inner.history(task_id, **page)

    async def record_progress(self, entry: ProgressEntry, guard: Guard = UNGUARDED) -> ProgressEntry:
        return await self.inner.record_progress(entry, guard)

    async def progress(self, task_id: str, **page: Any) -> list[ProgressEntry]:
        return await self.inner.progress(task_id, **page)

    async def latest_progress(self, task_id: str) -> ProgressEntry | None:
        return await self.inner.latest_progress(task_id)

    async def clear_progress(self, task_id: str) -> int:
        return await self.inner.clear_progress(task_id)

    async def purge_completed(self, older_than_s: float, statuses: Sequence[TaskStatus] = FINISHED) -> int:
        return await self.inner.purge_completed(older_than_s, statuses)

    async def purge_progress(self, older_than_s: float) -> int:
        return await self.inner.purge_progress(older_than_s)

    async def stats(self) -> LedgerStats:
        return await self.inner.stats()

    async def health(self) -> LedgerHealth:
        return await self.inner.health()

    async def acquire(self, name: str, owner: str, lease_s: float) -> Lease | None:
        return await self.inner.acquire(name, owner, lease_s)

    async def renew(self, lease: Lease, lease_s: float) -> Lease:
        return await self.inner.renew(lease, lease_s)

    async def release(self, lease: Lease) -> None:
        await self.inner.release(lease)
