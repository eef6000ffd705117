"""The ledger over any store."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec

from hivewire.coordination.ledger import other_scripts, task_scripts
from hivewire.coordination.ledger.contract import UNGUARDED, Ledger
from hivewire.coordination.ledger.migrations.migrator import Migrator
from hivewire.coordination.ledger.model import (
    MOST_LISTED,
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
from hivewire.coordination.ledger.store import Query, Script, Store
from hivewire.errors import BackendError, LedgerError
from hivewire.ids import new_id
from hivewire.rules.task_states import FINISHED, TaskStatus

T = TypeVar("T")

_HEALTH_S: Final = 4.0


@dataclass(frozen=True)
class Retention:
    """Delete what was finished `older_than_s` ago, and steps so old, every `every_s`."""

    every_s: float = 3600.0
    older_than_s: float = 7 * 86400.0


class StoredLedger(Ledger):
    """All that a ledger means, once; what keeps the rows is a `Store`.

    When it is opened: `migrate` makes or upgrades the tables, `make` makes them where there are none.
    """

    def __init__(
        self, store: Store, *, retention: Retention | None = None, migrate: bool = False, make: bool = False
    ) -> None:
        self.store = store
        self._retention = retention
        self._migrate = migrate
        self._make = make
        self._is_open = False
        self._opening = asyncio.Lock()
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def migrator(self) -> Migrator:
        """Brings the tables up and down."""
        return Migrator(self.store)

    async def open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            await self.store.open()
            if self._migrate:
                await self.migrator.upgrade()
            elif self._make:
                await self.migrator.make()
            await self.migrator.check()
            self._is_open = True
            if self._retention is not None:
                from hivewire.coordination.ledger.retention import keep_house

                self._housekeeper = asyncio.create_task(
                    keep_house(self, self._retention), name="hivewire-ledger-retention"
                )

    async def close(self) -> None:
        keeper, self._housekeeper = self._housekeeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        try:
            await self.store.close()
        finally:
            self._is_open = False

    # -- tasks

    async def create_task(self, task: Task, guard: Guard = UNGUARDED) -> Task:
        return await self._write(partial(task_scripts.create, task, guard, new_id()))

    async def create_tasks(self, tasks: Sequence[Task]) -> int:
        await self.open()
        script = partial(task_scripts.create_many, tasks, new_id(), self.store.rows_at_once)
        return await self.store.write(script)

    async def get_task(self, task_id: str) -> Task:
        return await self._read(partial(task_scripts.get, task_id))

    async def marks(self, ids: Sequence[str]) -> dict[str, tuple[int, float]]:
        """For a cache: what is different after each change, of those of the tasks that there are."""
        return await self._read(partial(task_scripts.marks, ids))

    async def update_task(self, task_id: str, change: TaskChange, guard: Guard = UNGUARDED) -> Task:
        return await self._write(partial(task_scripts.update, task_id, change, guard, new_id()))

    async def delete_task(self, task_id: str, guard: Guard = UNGUARDED) -> None:
        await self._write(partial(task_scripts.delete, task_id, guard, itertools.count()))

    async def list_tasks(self, wanted: TaskFilter | None = None) -> list[Task]:
        return await self._read(partial(task_scripts.listing, wanted or TaskFilter()))

    async def count_tasks(self, wanted: TaskFilter | None = None) -> int:
        return await self._read(partial(task_scripts.counting, wanted or TaskFilter()))

    async def history(self, task_id: str, *, after_version: int = 0, limit: int = 1_000) -> list[HistoryEntry]:
        return await self._read(partial(task_scripts.history, task_id, after_version, _most(limit)))

    # -- progress

    async def record_progress(self, entry: ProgressEntry, guard: Guard = UNGUARDED) -> ProgressEntry:
        return await self._write(partial(other_scripts.record, entry, guard, self.store.dialect))

    async def progress(self, task_id: str, *, after_step: int = 0, limit: int = 1_000) -> list[ProgressEntry]:
        return await self._read(partial(other_scripts.progress, task_id, after_step, _most(limit)))

    async def latest_progress(self, task_id: str) -> ProgressEntry | None:
        return await self._read(partial(other_scripts.latest, task_id))

    async def clear_progress(self, task_id: str) -> int:
        return await self._write(partial(other_scripts.clear, task_id))

    # -- keeping house

    async def purge_completed(self, older_than_s: float, statuses: Sequence[TaskStatus] = FINISHED) -> int:
        unfinished = [str(status) for status in statuses if status not in FINISHED]
        if unfinished or not statuses:
            raise LedgerError(f"only what is finished can be purged, not {', '.join(unfinished) or 'nothing'}")
        purged = await self._purge(partial(task_scripts.purge_some, _age(older_than_s), statuses))
        await self._purge(partial(other_scripts.purge_leases, _age(older_than_s)))
        return purged

    async def purge_progress(self, older_than_s: float) -> int:
        return await self._purge(partial(other_scripts.purge_some, _age(older_than_s)))

    async def stats(self) -> LedgerStats:
        counted = await self._read(task_scripts.stats)
        return msgspec.structs.replace(counted, storage_size_bytes=await self.store.storage_size_bytes())

    async def health(self) -> LedgerHealth:
        began = time.monotonic()
        detail, schema = "", 0
        try:
            async with asyncio.timeout(_HEALTH_S):
                await self.open()
                schema = await self.store.read(_last_migration)
        except TimeoutError:
            detail = f"no answer within {_HEALTH_S:g} s"
        except (BackendError, LedgerError) as error:
            detail = str(error)
        return LedgerHealth(
            ok=not detail,
            kind=self.store.kind,
            durability=self.store.durability,
            detail=detail,
            schema=schema,
            latency_s=time.monotonic() - began,
        )

    # -- ownership

    async def acquire(self, name: str, owner: str, lease_s: float) -> Lease | None:
        return await self._write(partial(other_scripts.acquire, name, owner, lease_s))

    async def renew(self, lease: Lease, lease_s: float) -> Lease:
        return await self._write(partial(other_scripts.renew, lease, lease_s))

    async def release(self, lease: Lease) -> None:
        await self._write(partial(other_scripts.release, lease))

    async def _read(self, make: Callable[[], Script[T]]) -> T:
        if not self._is_open:
            await self.open()
        return await self.store.read(make)

    async def _write(self, make: Callable[[], Script[T]]) -> T:
        if not self._is_open:
            await self.open()
        return await self.store.write(make, single=True)

    async def _purge(self, make: Callable[[], Script[int]]) -> int:
        """In small transactions, until nothing is left."""
        total = 0
        while gone := await self._write(make):
            total += gone
        return total


def _last_migration() -> Script[int]:
    rows = yield Query("SELECT coalesce(max(number), 0) FROM hivewire_migrations")
    return int(rows[0][0])


def _most(limit: int) -> int:
    if type(limit) is not int or not 1 <= limit <= MOST_LISTED:
        raise LedgerError(f"limit is a whole number from 1 to {MOST_LISTED:,}, not {limit!r:.80}")
    return limit


def _age(older_than_s: float) -> float:
    if 0 <= older_than_s < 1e12:
        return float(older_than_s)
    raise LedgerError(f"older_than_s is a number of seconds, 0 or more, not {older_than_s!r:.80}")
