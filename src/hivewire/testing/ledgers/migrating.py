"""The tables go up and down, and what is not right is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from hivewire.coordination.ledger import ProgressEntry, Task, open_ledger
from hivewire.coordination.ledger.cached import CachedLedger
from hivewire.coordination.ledger.migrations.migrator import migrations
from hivewire.coordination.ledger.store import Query, Row, Script, Store
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.errors import MigrationNeeded
from hivewire.testing.conformance.waiting import count
from hivewire.testing.ledgers.fabric import LedgerFabric

FIRST_COLUMNS = (
    "id, name, description, type, priority, assigned_to, created_by, dependencies, input, output, status, error, "
    "metadata, created_at, updated_at, completed_at"
)


def bare(ledgers: LedgerFabric) -> StoredLedger:
    """A ledger that does not make its tables."""
    made = open_ledger(ledgers.url, migrate=False, **ledgers.settings)
    stored = made.inner if isinstance(made, CachedLedger) else made
    assert isinstance(stored, StoredLedger)
    return stored


def one(sql: str) -> Script[Sequence[Row]]:
    return (yield Query(sql))


async def dump(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables of the first migration."""
    tables = {"tasks": FIRST_COLUMNS, "task_progress": "*", "agent_state": "*", "message_dedup": "*"}
    return {
        table: [tuple(row) for row in await store.read(partial(one, f"SELECT {columns} FROM {table} ORDER BY 1, 2"))]
        for table, columns in tables.items()
    }


async def columns_of(store: Store) -> list[str]:
    if store.dialect == "sqlite":
        sql = "SELECT name || coalesce(sql, '') FROM sqlite_schema WHERE name NOT LIKE '%migrations%' ORDER BY 1"
    else:
        sql = (
            "SELECT table_name || '.' || column_name || ' ' || data_type || coalesce(column_default, '') "
            "FROM information_schema.columns WHERE table_schema = current_schema() "
            "AND table_name NOT LIKE '%migrations%' UNION ALL SELECT indexdef FROM pg_indexes WHERE "
            "schemaname = current_schema() AND tablename NOT LIKE '%migrations%' ORDER BY 1"
        )
    return [str(row[0]) for row in await store.read(partial(one, sql))]


async def fill(ledger: StoredLedger, many: int) -> None:
    tasks = [
        Task(name=f"t{n}", input={"n": n}, metadata={"odd": "ß\u2028"}, priority=1 + n % 10, created_by="ann")
        for n in range(many)
    ]
    for start in range(0, many, 5_000):
        await ledger.create_tasks(tasks[start : start + 5_000])
    for task in tasks[:20]:
        await ledger.record_progress(ProgressEntry(task_id=task.id, action="a", output=task.name))
        await ledger.complete_task(task.id, {"out": task.name})


@pytest.mark.slow
async def test_up_loses_nothing_and_down_gives_an_equal_dump(ledgers: LedgerFabric) -> None:
    many = count(5_000, 100_000)
    ledger = bare(ledgers)
    migrator = ledger.migrator
    await migrator.upgrade()
    try:
        await ledger.open()
        await fill(ledger, many)
        assert await migrator.downgrade(1) == list(range(migrator.latest, 1, -1))
        first, shape = await dump(ledger.store), await columns_of(ledger.store)
        assert (len(first["tasks"]), len(first["task_progress"])) == (many, 20)
        assert await migrator.upgrade() == list(range(2, migrator.latest + 1))
        assert await dump(ledger.store) == first
        stats = await ledger.stats()
        assert (stats.total, stats.completed, stats.total_progress) == (many, 20, 20)
        told = await ledger.history(first["tasks"][0][0])  # type: ignore[arg-type]  # the id, a text
        assert [entry.version for entry in told] == [1]
        await migrator.downgrade(1)
        assert await dump(ledger.store) == first
        assert await columns_of(ledger.store) == shape
        await migrator.downgrade(0)
        assert await columns_of(ledger.store) == []
    finally:
        await ledger.close()


async def test_tables_that_are_missing_or_old_are_refused(ledgers: LedgerFabric) -> None:
    ledger = bare(ledgers)
    try:
        with pytest.raises(MigrationNeeded, match=r"not there yet.*hivewire ledger upgrade"):
            await ledger.open()
        await ledger.migrator.upgrade(1)
        with pytest.raises(MigrationNeeded, match=r"are at migration 1.*hivewire ledger upgrade"):
            await ledger.open()
        assert [line.applied_at is None for line in await ledger.migrator.status()][:2] == [False, True]
        await ledger.migrator.upgrade()
        await ledger.open()
        await ledger.create_task(Task(name="t"))
    finally:
        await ledger.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("INSERT INTO hivewire_migrations VALUES (999, 'future', 'x', 0)", "newer version"),
        ("UPDATE hivewire_migrations SET checksum = 'x' WHERE number = 1", "another form"),
        ("DELETE FROM hivewire_migrations WHERE number = 1", "migration 1 is missing"),
        ("ALTER TABLE task_progress RENAME TO gone", "damaged: table task_progress"),
    ],
)
async def test_a_newer_or_damaged_schema_is_refused_and_not_touched(
    ledgers: LedgerFabric, damage: str, said: str
) -> None:
    ledger = bare(ledgers)
    try:
        await ledger.migrator.upgrade()
        await ledger.store.write(partial(one, damage))
        shape = await columns_of(ledger.store)
        with pytest.raises(MigrationNeeded, match=said):
            await ledger.open()
        if "damaged" not in said:
            with pytest.raises(MigrationNeeded, match=said):
                await ledger.migrator.upgrade()
            with pytest.raises(MigrationNeeded, match=said):
                await ledger.migrator.downgrade(0)
        assert await columns_of(ledger.store) == shape
    finally:
        await ledger.close()


async def test_migrators_at_once_do_each_step_once(ledgers: LedgerFabric) -> None:
    if not ledgers.shared:
        return
    made = [bare(ledgers) for _ in range(4)]
    try:
        steps = await asyncio.gather(*(ledger.migrator.upgrade() for ledger in made))
        assert sorted(number for part in steps for number in part) == list(range(1, made[0].migrator.latest + 1))
        for ledger in made:
            await ledger.open()
    finally:
        for ledger in made:
            await ledger.close()


async def test_a_step_that_fails_leaves_nothing(ledgers: LedgerFabric) -> None:
    """A table of that name is there already, made by somebody else."""
    ledger = bare(ledgers)
    try:
        await ledger.migrator.upgrade(1)
        await ledger.store.write(partial(one, "CREATE TABLE leases (mine integer)"))
        shape = await columns_of(ledger.store)
        with pytest.raises(Exception, match="leases"):
            await ledger.migrator.upgrade()
        assert await columns_of(ledger.store) == shape
        assert [line.applied_at is not None for line in await ledger.migrator.status()][:2] == [True, False]
    finally:
        await ledger.close()


def test_both_dialects_have_the_same_migrations() -> None:
    sqlite, postgres = migrations("sqlite"), migrations("postgres")
    assert [(step.number, step.name) for step in sqlite] == [(step.number, step.name) for step in postgres]
    assert [step.number for step in sqlite] == list(range(1, len(sqlite) + 1))
