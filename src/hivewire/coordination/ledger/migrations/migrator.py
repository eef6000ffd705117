"""Brings the tables of a ledger up and down, one numbered migration at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from hivewire.coordination.ledger.store import Ddl, Dialect, Query, Row, Script, Store
from hivewire.errors import BackendError, MigrationNeeded

_FILE: Final = re.compile(r"(\d{4})_(\w+)\.up\.sql")
_MADE: Final = (
    "CREATE TABLE IF NOT EXISTS hivewire_migrations (number integer PRIMARY KEY, name text NOT NULL, "
    "checksum text NOT NULL, applied_at double precision NOT NULL)"
)
_TABLES: Final = (
    *("tasks", "task_progress", "agent_state", "message_dedup", "task_history", "leases"),
    *("runs", "run_subtasks", "run_inbox", "run_outbox", "run_timers", "run_log"),
)
_LOCK: Final = 0x68697665
_UPGRADE: Final = "run `hivewire ledger upgrade`"


class Migration(NamedTuple):
    """What one number does, and how to undo it."""

    number: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(f"{self.up}\0{self.down}".encode()).hexdigest()


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the list of migrations; `applied_at` None: not applied."""

    number: int
    name: str
    applied_at: float | None
    problem: str = ""


@cache
def migrations(dialect: Dialect) -> tuple[Migration, ...]:
    """Those that come with this version, in their order."""
    folder = Path(__file__).parent / dialect
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if matched := _FILE.fullmatch(file.name):
            down = folder / file.name.replace(".up.", ".down.")
            found.append(Migration(int(matched[1]), matched[2], file.read_text("utf-8"), down.read_text("utf-8")))
    return tuple(found)


class Migrator:
    """Any number of processes may migrate at once: each step is one transaction that holds a lock and looks again
    what is to be done."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = migrations(store.dialect)

    @property
    def latest(self) -> int:
        """The number of the last migration that this version knows."""
        return self._known[-1].number

    async def status(self) -> list[Applied]:
        """All migrations that are known here or were applied there."""
        await self._store.open()
        done = {row[0]: row for row in await self._store.read(_applied)}
        known = {migration.number: migration for migration in self._known}
        lines = []
        for number in sorted(known.keys() | done.keys()):
            migration, row = known.get(number), done.get(number)
            name = migration.name if migration else str(row[1]) if row else ""
            problem = "" if row is None else _problem(migration, row)
            if row is None and any(later > number for later in done):
                problem = f"migration {number} is missing, though later ones were applied: restore a copy"
            lines.append(Applied(number=number, name=name, applied_at=row[3] if row else None, problem=problem))
        return lines

    async def check(self) -> None:
        """Raise `MigrationNeeded` unless the tables are this version's."""
        lines = await self.status()
        self._refuse_problems(lines)
        missing = [line.number for line in lines if line.applied_at is None]
        if missing:
            have = min(missing) - 1
            state = f"are at migration {have}" if have else "are not there yet"
            raise MigrationNeeded(f"the ledger's tables {state}; this version needs {self.latest}: {_UPGRADE}")
        try:
            await self._store.read(partial(_probe, _TABLES))
        except BackendError as error:
            if not error.retryable:
                await self._refuse_the_damaged()
            raise

    async def _refuse_the_damaged(self) -> None:
        """One cannot be read: say which."""
        for table in _TABLES:
            try:
                await self._store.read(partial(_probe, (table,)))
            except BackendError as error:
                if error.retryable:
                    raise
                raise MigrationNeeded(
                    f"the ledger is damaged: table {table} cannot be read ({error}); restore a copy"
                ) from error

    async def make(self) -> None:
        """Where there are no tables, make all of them, in one transaction: who opens the ledger meanwhile, or after
        the death of this process, finds all or none."""
        if not any(line.applied_at for line in await self.status()):
            await self._store.write(self._all)

    def _all(self) -> Script[None]:
        yield from self._prepare()
        if not (yield Query("SELECT 1 FROM hivewire_migrations LIMIT 1")):  # nobody was faster
            while (yield from self._one(self.latest, up=True)) is not None:
                pass

    async def upgrade(self, to: int | None = None) -> list[int]:
        """Apply what is missing, up to number `to`; returns the numbers. Nothing is lost on the way."""
        return await self._go(self.latest if to is None else to, up=True)

    async def downgrade(self, to: int) -> list[int]:
        """Undo what is above number `to`, with the data that only it had; returns the numbers."""
        return await self._go(to, up=False)

    async def _go(self, to: int, *, up: bool) -> list[int]:
        if not 0 <= to <= self.latest:
            raise MigrationNeeded(f"there is no migration {to}; this version knows 1 to {self.latest}, and 0 for none")
        await self._store.open()
        done: list[int] = []
        await self._store.write(self._prepare)
        self._refuse_problems(await self.status())
        while (number := await self._store.write(lambda: self._one(to, up=up))) is not None:
            done.append(number)
        return done

    def _prepare(self) -> Script[None]:
        yield from _locked()
        schema = self._store.schema
        if schema and not (yield Query("SELECT 1 FROM pg_namespace WHERE nspname = $1", [schema])):
            yield Ddl(f'CREATE SCHEMA "{schema}";')
        yield Ddl(_MADE + ";")

    def _one(self, to: int, *, up: bool) -> Script[int | None]:
        """The next step towards `to`, if there is one."""
        yield from _locked()
        rows = yield Query("SELECT number, name, checksum, applied_at FROM hivewire_migrations")
        done = {row[0]: row for row in rows}
        known = {migration.number: migration for migration in self._known}
        steps = sorted(number for number in known if number <= to and number not in done)
        if not up:
            steps = sorted((number for number in done if number > to), reverse=True)
        if not steps:
            return None
        step = known[steps[0]]
        if up:
            yield Ddl(step.up)
            yield Query(
                "INSERT INTO hivewire_migrations VALUES ($1, $2, $3, hivewire_now())",
                [step.number, step.name, step.checksum],
            )
        else:
            yield Ddl(step.down)
            yield Query("DELETE FROM hivewire_migrations WHERE number = $1", [step.number])
        return step.number

    def _refuse_problems(self, lines: Sequence[Applied]) -> None:
        for line in lines:
            if line.problem:
                raise MigrationNeeded(line.problem)


def _problem(migration: Migration | None, row: Row) -> str:
    number, name, checksum, _ = row
    if migration is None:
        return (
            f"the ledger has migration {number} ({name}), which this version does not know: it was written by a newer "
            "version; use that one"
        )
    if checksum != migration.checksum:
        return (
            f"migration {number} ({name}) was applied in another form than the one of this version; "
            "the tables cannot be trusted: restore a copy, or use the version that made them"
        )
    return ""


def _applied() -> Script[Sequence[Row]]:
    if not (yield Query("SELECT 1 FROM hivewire_tables() WHERE name = 'hivewire_migrations'")):
        return []
    return (yield Query("SELECT number, name, checksum, applied_at FROM hivewire_migrations ORDER BY number"))


def _locked() -> Script[None]:
    """One migrator at a time. The transaction alone does it where there is one writer."""
    yield Query("SELECT hivewire_lock($1)", [_LOCK])


def _probe(tables: Sequence[str]) -> Script[None]:
    for table in tables:
        yield Query(f"SELECT * FROM {table} LIMIT 1")
