"""The runs in a ledger."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from hivewire.coordination.ledger import run_log, run_outbox, run_scripts
from hivewire.coordination.ledger.contract import Ledger
from hivewire.coordination.ledger.run_log import LogEntry
from hivewire.coordination.ledger.run_outbox import Kept
from hivewire.coordination.ledger.run_scripts import Resolve
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.errors import CoordinationError
from hivewire.rules.plan_state import Command, Incoming, Row, RunState

_KEPT_ROWS: Final = 50_000
"""So many subtasks in all are kept in memory, of the runs used last."""


class Runs:
    """Runs of plans: each change is one transaction that holds the run's lock from reading to storing.

    Any number of coordinators may use it; none of them is special. The states of the runs used last are kept, and
    used when nobody else has changed them.
    """

    def __init__(self, ledger: Ledger) -> None:
        inner = getattr(ledger, "inner", ledger)
        if not isinstance(inner, StoredLedger):
            raise CoordinationError(f"a {type(ledger).__name__} keeps no runs; use hivewire.open_ledger")
        self._ledger = inner
        self._states: OrderedDict[str, RunState] = OrderedDict()
        self._rows = 0

    async def create(self, state: RunState, first: Incoming) -> RunState | None:
        """Keep a new run and let it begin; when this returns, it will be carried out. None: the id is taken."""
        made = await self._ledger.store.write(partial(run_scripts.create, state, first))
        return None if made is None else self._keep(made)

    async def apply(self, run: str, resolve: Resolve) -> tuple[RunState, list[Command], RunState]:
        """The state after the events that are new among those of `resolve`, the commands that follow, and the state
        before. When this returns, all of it is stored: the events may be acknowledged."""
        state, commands, before = await self._ledger.store.write(
            partial(run_scripts.apply, run, resolve, self._states.get(run))
        )
        return self._keep(state), commands, before

    async def load(self, run: str) -> RunState:
        """The state of a run as it is stored now. Raises `CoordinationError` when there is none."""
        return self._keep(await self._ledger.store.read(partial(run_scripts.load, run, self._states.get(run))))

    async def decided(
        self, run: str, limit: int = 100, after: tuple[int, int] = (-1, -1)
    ) -> tuple[list[Kept], RunState | None]:
        """What must still be sent, in the order it was decided, from behind that place, and the state of the run as it
        is stored now; no state where there is nothing to be sent."""
        kept, state = await self._ledger.store.read(
            partial(run_scripts.decided, run, limit, after, self._states.get(run))
        )
        return kept, None if state is None else self._keep(state)

    async def route(self, run: str, chosen: Sequence[tuple[Kept, str]]) -> dict[str, str]:
        """Fix to whom commands go, before they are sent: a resend goes to the same one. The recipients, by id."""
        return await self._ledger.store.write(partial(run_outbox.route, run, chosen))

    async def sent(self, run: str, kept: Iterable[Kept]) -> None:
        """These need not be sent any more."""
        await self._ledger.store.write(partial(run_outbox.sent, run, [each.place for each in kept]))

    async def waiting(
        self, older_than_s: float, after: str = "", limit: int = 100
    ) -> tuple[list[tuple[str, str, int]], list[str]]:
        """(run, subtask, generation) of the timers that have gone off, by the store's clock; and the runs with
        something to be sent that has waited for so long, in order, behind that one."""
        return await self._ledger.store.read(partial(run_scripts.waiting, older_than_s, after, limit))

    async def running(self, limit: int = 1_000) -> list[tuple[str, Row]]:
        """(run, subtask) of what was sent and is not answered."""
        return await self._ledger.store.read(partial(run_scripts.running, limit))

    async def unfinished(self, limit: int = 1_000) -> list[str]:
        """Runs that have not come to their end, the oldest first."""
        return await self._ledger.store.read(partial(run_scripts.unfinished, limit))

    async def drop(self, run: str) -> None:
        """Forget a run and the tasks of its subtasks. What is still answered for it is refused."""
        await self._ledger.store.write(partial(run_scripts.drop, run))

    async def note(self, run: str, notes: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
        """Add what handlers tell to the run's log, by (id, time, body)."""
        await self._ledger.store.write(partial(run_scripts.note, run, notes))

    async def log(self, run: str, after: int = 0, limit: int = 500) -> list[LogEntry]:
        """What has happened in a run since the entry of that number."""
        return await self._ledger.store.read(partial(run_log.read, run, after, limit))

    def _keep(self, state: RunState) -> RunState:
        run = state.header.run
        known = self._states.get(run)
        if known is not None and known.header.seq > state.header.seq:
            return state  # another call has seen more meanwhile
        self._rows += _weight(state) - (0 if known is None else _weight(known))
        self._states[run] = state
        self._states.move_to_end(run)
        while self._rows > _KEPT_ROWS and len(self._states) > 1:
            self._rows -= _weight(self._states.popitem(last=False)[1])
        return state


def _weight(state: RunState) -> int:
    return len(state.rows) + 1
