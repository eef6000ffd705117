"""Finds subtasks whose message is nowhere: a queue was purged, or a store has lost what it had confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hivewire.coordination.ledger.runs import Runs
from hivewire.protocol import Protocol
from hivewire.rules.plan_state import Row

_LOOK_S: Final = 2.0
_QUIET_S: Final = 3.0
"""What was sent a moment ago is not looked for."""


class Missing:
    """A message goes from the outbox to a queue, its answer from there to the mailbox and into the ledger. So places
    are looked at in this order, and what is in none of them at two looks in a row is nowhere.

    A queue can only be asked how much it holds: as long as it holds something, nothing of it counts as missing.
    """

    def __init__(
        self,
        protocol: Protocol,
        runs: Runs,
        inbox: str,
        able: Callable[[str], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        self._protocol = protocol
        self._runs = runs
        self._inbox = inbox
        self._able = able
        """The agents that have a capability."""
        self._clock = clock
        self._next_at = 0.0
        self._suspects: set[tuple[str, str]] = set()

    async def look(self) -> set[tuple[str, str]]:
        """(run, id of the message) of what is missing now. Looks every 2 s, and else finds nothing."""
        now = asyncio.get_running_loop().time()
        if now < self._next_at:
            return set()
        self._next_at = now + _LOOK_S
        suspects = await self._suspected()
        missing = suspects & self._suspects
        self._suspects = suspects - missing
        return missing

    async def _suspected(self) -> set[tuple[str, str]]:
        sent = await self._sent()
        if not sent:
            return set()
        empty: dict[str, bool] = {}
        for agent in sorted({agent for row in sent.values() for agent in self._able(row.spec.assigned_to)}):
            empty[agent] = await self._is_empty(agent)
        nowhere = {name for name, row in sent.items() if _all_of(empty, self._able(row.spec.assigned_to))}
        if not nowhere or not await self._is_empty(self._inbox):
            return set()
        return nowhere & (await self._sent()).keys()  # others have been answered meanwhile

    async def _sent(self) -> dict[tuple[str, str], Row]:
        now = self._clock()
        running = await self._runs.running()
        # One from the future was sent by a coordinator with another clock: the two looks must do for it.
        return {(run, row.message_id): row for run, row in running if not 0 <= now - row.sent_at < _QUIET_S}

    async def _is_empty(self, agent: str) -> bool:
        depth = await self._protocol.depth(agent)
        return depth.ready + depth.in_flight + depth.scheduled == 0


def _all_of(empty: dict[str, bool], agents: Iterable[str]) -> bool:
    """None of them holds anything. One that came a moment ago has not been asked."""
    return all(empty.get(agent, False) for agent in agents)
