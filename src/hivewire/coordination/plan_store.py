"""Runs of plans in SQLite: what was decided and what must still be sent, in one transaction a step."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from hivewire.errors import CoordinationError
from hivewire.rules.plan_state import (
    UNFINISHED,
    Command,
    Dispatch,
    Event,
    RunState,
    RunStatus,
    SetTimer,
    Timer,
    dump,
    load_command,
    load_event,
    load_header,
    load_state,
)
from hivewire.rules.plan_step import step

SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x48575031
_BUSY_MS: Final = 15_000

_TABLES: Final = """
CREATE TABLE runs (run TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, seq INTEGER NOT NULL,
                   created_at REAL NOT NULL, header BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE subtasks (run TEXT NOT NULL, name TEXT NOT NULL, place INTEGER NOT NULL, status TEXT NOT NULL,
                       row BLOB NOT NULL, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, id TEXT NOT NULL, body BLOB,
                     UNIQUE (run, id));
CREATE INDEX waiting ON events (run, number) WHERE body IS NOT NULL;
CREATE TABLE outbox (run TEXT NOT NULL, seq INTEGER NOT NULL, place INTEGER NOT NULL, id TEXT NOT NULL,
                     body BLOB NOT NULL, PRIMARY KEY (run, seq, place)) WITHOUT ROWID;
CREATE TABLE timers (run TEXT NOT NULL, subtask TEXT NOT NULL, generation INTEGER NOT NULL, due_at REAL NOT NULL,
                     PRIMARY KEY (run, subtask)) WITHOUT ROWID;
"""


class Incoming(msgspec.Struct, frozen=True):
    """An event and the id by which it is known when it comes again."""

    id: str
    event: Event


class RunEntry(msgspec.Struct, frozen=True):
    """A run in the listing."""

    run: str
    name: str
    status: RunStatus
    created_at: float


class PlanStore:
    """The runs kept in one SQLite file, or in memory without a path.

    Any number of processes may use the file: each change is one transaction that holds the write lock
    from reading to storing. Calls block for a disk write; call them from a thread. Not thread-safe.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._where = "memory" if path is None else str(path)
        self._cache: dict[str, RunState] = {}
        with self._explained("open"):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # A store is handed to one worker thread after it was made; never used from two at once.
            self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            self._open()

    def close(self) -> None:
        self._cache.clear()
        self._db.close()

    def create(self, state: RunState, created_at: float) -> None:
        """Keep a new run. Raises `CoordinationError` when its name is taken."""
        with self._transaction("create a run"):
            if self._db.execute("SELECT 1 FROM runs WHERE run = ?", [state.header.run]).fetchone():
                raise CoordinationError(f"there is a run {state.header.run} already; choose another name")
            head = state.header
            self._db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)",
                [head.run, head.name, head.status, head.seq, created_at, dump(head)],
            )
            self._store_rows(None, state)

    def runs(self) -> list[RunEntry]:
        """All runs, the latest first."""
        with self._explained("list runs"):
            found = self._db.execute(
                "SELECT run, name, status, created_at FROM runs ORDER BY created_at DESC, run DESC"
            )
            return [RunEntry(*entry) for entry in found]

    def unfinished(self) -> RunEntry | None:
        """The latest run that has not come to its end."""
        return next((entry for entry in self.runs() if entry.status in UNFINISHED), None)

    def drop(self, run: str) -> None:
        """Forget a run, whatever its state."""
        with self._transaction("drop a run"):
            for table in ("runs", "subtasks", "events", "outbox", "timers"):
                self._db.execute(f"DELETE FROM {table} WHERE run = ?", [run])
        self._cache.pop(run, None)

    def load(self, run: str) -> RunState:
        """The state of a run as it is stored now."""
        with self._explained("load a run"):
            return self._present(run)

    def apply(self, run: str, events: Sequence[Incoming]) -> tuple[RunState, list[Command]]:
        """Take in the events that are new, step through all that wait, store what follows.

        When this returns, everything is on the disk: the events may be acknowledged, and the commands
        wait in the outbox and among the timers until they are carried out.
        """
        with self._transaction("store a step"):
            before = self._present(run)
            self._db.executemany(
                "INSERT OR IGNORE INTO events (run, id, body) VALUES (?, ?, ?)",
                [(run, incoming.id, dump(incoming.event)) for incoming in events],
            )
            state = before
            commands: list[Command] = []
            for event in self._waiting(run):
                state, follow = step(state, event)
                self._store_commands(state, follow)
                commands += follow
            if state.is_finished:  # it takes no event any more, known or not
                self._db.execute("DELETE FROM events WHERE run = ?", [run])
            else:  # the ids stay, so that an event that comes again is known
                self._db.execute("UPDATE events SET body = NULL WHERE run = ? AND body IS NOT NULL", [run])
            if state is not before:
                self._store_header(state)
                self._store_rows(before, state)
        self._cache[run] = state
        return state, commands

    def outbox(self, run: str, limit: int = 100) -> list[Dispatch]:
        """What must still be sent, in the order it was decided."""
        with self._explained("read the outbox"):
            found = self._db.execute(
                "SELECT body FROM outbox WHERE run = ? ORDER BY seq, place LIMIT ?", [run, limit]
            ).fetchall()
        commands = (load_command(body) for (body,) in found)
        return [command for command in commands if isinstance(command, Dispatch)]

    def sent(self, run: str, ids: Iterable[str]) -> None:
        """These are stored by the protocol (or outdated): forget them."""
        with self._transaction("empty the outbox"):
            self._db.executemany("DELETE FROM outbox WHERE run = ? AND id = ?", [(run, name) for name in ids])

    def due(self, run: str, now: float) -> list[Incoming]:
        """The timers that have gone off. They stay until a step has dealt with them."""
        with self._explained("read the timers"):
            found = self._db.execute(
                "SELECT subtask, generation FROM timers WHERE run = ? AND due_at <= ? ORDER BY due_at", [run, now]
            ).fetchall()
        return [
            Incoming(f"timer:{generation}", Timer(at=now, subtask=subtask, generation=generation))
            for subtask, generation in found
        ]

    def _present(self, run: str) -> RunState:
        found = self._db.execute("SELECT seq, header FROM runs WHERE run = ?", [run]).fetchone()
        if found is None:
            raise CoordinationError(f"there is no run {run} in {self._where}")
        cached = self._cache.get(run)
        if cached is not None and cached.header.seq == found[0]:
            return cached  # nobody else has changed it
        load_header(found[1])  # before the rows: newer code may have written those otherwise, too
        rows = self._db.execute("SELECT row FROM subtasks WHERE run = ? ORDER BY place", [run])
        return load_state(found[1], (row for (row,) in rows))

    def _waiting(self, run: str) -> list[Event]:
        found = self._db.execute("SELECT body FROM events WHERE run = ? AND body IS NOT NULL ORDER BY number", [run])
        return [load_event(body) for (body,) in found]

    def _store_header(self, state: RunState) -> None:
        head = state.header
        self._db.execute(
            "UPDATE runs SET status = ?, seq = ?, header = ? WHERE run = ?",
            [head.status, head.seq, dump(head), head.run],
        )

    def _store_rows(self, before: RunState | None, state: RunState) -> None:
        run = state.header.run
        old = {} if before is None else before.rows
        # Places change only with the plan's version; else it is enough to write what is another object.
        moved = before is None or before.header.version != state.header.version
        gone = [(run, name) for name in old.keys() - state.rows.keys()]
        self._db.executemany("DELETE FROM subtasks WHERE run = ? AND name = ?", gone)
        over = [(run, name) for name, row in state.rows.items() if not row.timer and name in old and old[name].timer]
        self._db.executemany("DELETE FROM timers WHERE run = ? AND subtask = ?", [*gone, *over])
        self._db.executemany(
            "INSERT OR REPLACE INTO subtasks VALUES (?, ?, ?, ?, ?)",
            [
                (run, name, place, row.status, dump(row))
                for place, (name, row) in enumerate(state.rows.items())
                if moved or old.get(name) is not row
            ],
        )

    def _store_commands(self, state: RunState, commands: Sequence[Command]) -> None:
        head = state.header
        for place, command in enumerate(commands):
            if isinstance(command, Dispatch):
                self._db.execute(
                    "INSERT INTO outbox VALUES (?, ?, ?, ?, ?)", [head.run, head.seq, place, command.id, dump(command)]
                )
            elif isinstance(command, SetTimer):
                self._db.execute(
                    "INSERT OR REPLACE INTO timers VALUES (?, ?, ?, ?)",
                    [head.run, command.subtask, command.generation, command.due_at],
                )

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        owner = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if owner != _APPLICATION_ID and (owner or version or tables):
            raise CoordinationError(f"{self._where} is a database of another program; name another folder")
        if version > SCHEMA_VERSION:
            raise CoordinationError(
                f"{self._where} was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if version == 0:
            self._make()

    def _make(self) -> None:
        with self._transaction("make the tables"):
            if self._db.execute("PRAGMA user_version").fetchone()[0]:
                return  # another process was faster
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self, doing: str) -> Generator[None]:
        """All or nothing, with the write lock from the beginning."""
        with self._explained(doing):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:  # something was raised: leave the file as it was
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self, doing: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise CoordinationError(f"cannot {doing} in {self._where}: {error}") from error
        except OSError as error:
            raise CoordinationError(f"cannot {doing} in {self._where}: {error.strerror}") from error
