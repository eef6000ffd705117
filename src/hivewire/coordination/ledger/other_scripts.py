"""Progress and leases, each operation as a script."""

from __future__ import annotations

from typing import Final

from hivewire.coordination.ledger.model import Guard, Lease, ProgressEntry
from hivewire.coordination.ledger.rows import PROGRESS, checked_id, progress_of, progress_row
from hivewire.coordination.ledger.store import Dialect, Query, Script
from hivewire.coordination.ledger.task_scripts import Arguments, check_lease
from hivewire.errors import LeaseLost, LedgerError, TaskMissing

_PURGED_AT_ONCE: Final = 1_000
_KINDS: Final = ("text", "text", "text", "integer", "text", "text", "json", "json", "text", "text", "json")


def record(entry: ProgressEntry, guard: Guard, dialect: Dialect) -> Script[ProgressEntry]:
    row = progress_row(entry)
    arguments = Arguments()
    places = [f"CAST({arguments.add(value)} AS {kind})" for value, kind in zip(row, _KINDS, strict=True)]
    task = f"${2}"
    if entry.step is None and dialect == "sqlite":  # elsewhere a trigger does it, which can lock the task
        places[3] = f"(SELECT coalesce(max(step), 0) + 1 FROM task_progress WHERE task_id = {task})"
    rows = yield Query(
        f"INSERT INTO task_progress ({PROGRESS}) SELECT {', '.join(places)}, hivewire_begun() "
        f"WHERE EXISTS (SELECT 1 FROM tasks WHERE id = {task}){arguments.held(guard)} "
        f"ON CONFLICT DO NOTHING RETURNING {PROGRESS}",
        arguments.values,
    )
    if rows:
        return progress_of(rows[0])
    found = yield Query(f"SELECT {PROGRESS} FROM task_progress WHERE id = $1", [entry.id])
    if found:
        return progress_of(found[0])
    yield from check_lease(guard)
    if not (yield Query("SELECT 1 FROM tasks WHERE id = $1", [entry.task_id])):
        raise TaskMissing(f"there is no task {entry.task_id!r:.300}; its progress was not recorded")
    raise LedgerError(f"task {entry.task_id} has a step {entry.step} already; leave `step` out to get the next one")


def progress(task_id: str, after_step: int, limit: int) -> Script[list[ProgressEntry]]:
    rows = yield Query(
        f"SELECT {PROGRESS} FROM task_progress WHERE task_id = $1 AND step > $2 ORDER BY step LIMIT $3",
        [checked_id(task_id, "a task's id"), after_step, limit],
    )
    return [progress_of(row) for row in rows]


def latest(task_id: str) -> Script[ProgressEntry | None]:
    rows = yield Query(
        f"SELECT {PROGRESS} FROM task_progress WHERE task_id = $1 ORDER BY step DESC LIMIT 1",
        [checked_id(task_id, "a task's id")],
    )
    return progress_of(rows[0]) if rows else None


def clear(task_id: str) -> Script[int]:
    rows = yield Query("DELETE FROM task_progress WHERE task_id = $1 RETURNING 1", [checked_id(task_id, "an id")])
    return len(rows)


def purge_some(older_than_s: float) -> Script[int]:
    rows = yield Query(
        "DELETE FROM task_progress WHERE id IN (SELECT id FROM task_progress WHERE created_at < hivewire_begun() - $1 "
        f"ORDER BY created_at LIMIT {_PURGED_AT_ONCE}) RETURNING 1",
        [older_than_s],
    )
    return len(rows)


def acquire(name: str, owner: str, lease_s: float) -> Script[Lease | None]:
    checked_id(name, "a lease's name")
    checked_id(owner, "an owner's name")
    _check_duration(lease_s)
    # Microseconds make tokens rise even if the row was deleted in between.
    fresh = "CAST(hivewire_now() * 1000000 AS bigint)"
    rows = yield Query(
        "INSERT INTO leases (name, owner, token, until) "
        f"VALUES ($1, $2, {fresh}, hivewire_now() + $3) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, "
        "token = CASE WHEN leases.token >= excluded.token THEN leases.token + 1 ELSE excluded.token END, "
        "until = excluded.until WHERE leases.until <= hivewire_now() OR leases.owner = excluded.owner "
        "RETURNING name, owner, token, until",
        [name, owner, lease_s],
    )
    return _lease(*rows[0]) if rows else None


def renew(lease: Lease, lease_s: float) -> Script[Lease]:
    _check_duration(lease_s)
    rows = yield Query(
        "UPDATE leases SET until = hivewire_now() + $3 WHERE name = $1 AND token = $2 "
        "RETURNING name, owner, token, until",
        [lease.name, lease.token, lease_s],
    )
    if not rows:
        raise LeaseLost(f"{lease.owner} does not own {lease.name} any more")
    return _lease(*rows[0])


def release(lease: Lease) -> Script[None]:
    yield Query("UPDATE leases SET until = 0 WHERE name = $1 AND token = $2", [lease.name, lease.token])


def purge_leases(older_than_s: float) -> Script[int]:
    """Forget some of those that ended so long ago: each plan of a model had one of its own."""
    ended = "until < hivewire_begun() - $1"  # asked again of each row: somebody may have taken it meanwhile
    rows = yield Query(
        f"DELETE FROM leases WHERE {ended} AND name IN (SELECT name FROM leases WHERE {ended} LIMIT {_PURGED_AT_ONCE}) "
        "RETURNING 1",
        [older_than_s],
    )
    return len(rows)


def _lease(name: str, owner: str, token: int, until: float) -> Lease:
    return Lease(name=name, owner=owner, token=token, until=until)


def _check_duration(lease_s: float) -> None:
    if not 0 < lease_s < 1e9:
        raise LedgerError(f"a lease lasts for seconds above 0, not {lease_s!r:.80}")
