"""The runs of a ledger, called one after another without an event loop: in memory, or in a file that may be opened
again, and whose process may die."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from hivewire.coordination.ledger import run_outbox, run_scripts
from hivewire.coordination.ledger.sqlite import Connection, MemoryStore
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.rules.plan_state import Command, Dispatch, Incoming, RunState, Started, Timer
from tests.unit.dying import DyingConnection


class FileStore(MemoryStore):
    """As the store in memory, without a thread, and kept."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(clock=lambda: self.now)
        self.now = 1.0
        self._path = path

    async def open(self) -> None:
        if self._path is None:
            await super().open()
        elif self._connection is None:
            self._connection = Connection(str(self._path), self._clock)

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def dies_at(self, statement: int) -> None:
        """The process dies before that statement, counted from now."""
        self.connection.db = DyingConnection(self.connection.db, statement)  # type: ignore[assignment]  # on purpose

    def put_away(self) -> None:
        """Close the file, whether the process is dead or not."""
        db = self.connection.db
        (db._real if isinstance(db, DyingConnection) else db).close()
        self._connection = None


class KeptRuns:
    """What `Runs` does, at once."""

    def __init__(self, path: Path | None = None) -> None:
        self.store = FileStore(path)
        self._states: dict[str, RunState] = {}
        asyncio.run(StoredLedger(self.store, migrate=True).open())

    def close(self) -> None:
        self.store.put_away()

    def create(self, state: RunState) -> RunState | None:
        return self.store.run(partial(run_scripts.create, state, Incoming("start", Started(at=1.0))))

    def apply(self, run: str, events: Sequence[Incoming]) -> tuple[RunState, list[Command]]:
        script = partial(run_scripts.apply, run, lambda _: events, self._states.get(run))
        self._states[run], commands, _ = self.store.run(script)
        return self._states[run], commands

    def load(self, run: str) -> RunState:
        return self.store.run(partial(run_scripts.load, run))

    def outbox(self, run: str, limit: int = 100) -> list[Dispatch]:
        kept = self.store.run(partial(run_outbox.read, run, limit))
        return [each.command for each in kept if isinstance(each.command, Dispatch)]

    def sent(self, run: str, ids: Collection[str]) -> None:
        kept = self.store.run(partial(run_outbox.read, run, 1_000))
        places = [each.place for each in kept if each.command.id in set(ids)]
        self.store.run(partial(run_outbox.sent, run, places))

    def due(self, now: float) -> list[Incoming]:
        self.store.now = now
        return [
            Incoming(f"timer:{generation}", Timer(at=now, subtask=subtask, generation=generation))
            for _, subtask, generation in self.store.run(run_scripts.overdue)
        ]

    def unfinished(self) -> list[str]:
        return self.store.run(partial(run_scripts.unfinished, 10))
