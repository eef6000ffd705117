"""Finds the messages of a run that nobody will answer: dead letters, and those that are nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hivewire.protocol import DeadLetter, Protocol

_PAGE: Final = 100
_QUIET_S: Final = 3.0
"""With no event for so long, and nothing waiting or in hand at two looks, a message counts as gone."""
_MAX_RESENDS: Final = 3


class Losses:
    """Looks at the queues of a team for one run. Each look starts where the last one ended."""

    def __init__(self, protocol: Protocol, inbox: str) -> None:
        self._protocol = protocol
        self._inbox = inbox
        self._cursors: dict[str, str] = {}
        self._missed: dict[str, int] = {}
        self._resends: dict[str, int] = {}

    async def dead(self, agents: Sequence[str]) -> list[DeadLetter]:
        """The dead letters since the last look; at the first one, all of them."""
        found: list[DeadLetter] = []
        for agent in agents:
            while letters := await self._protocol.dead_letters(agent, limit=_PAGE, after=self._cursors.get(agent)):
                self._cursors[agent] = letters[-1].cursor
                found += letters
        return found

    def why(self, letter: DeadLetter) -> str:
        """The reason in one line: the last line of a traceback is the exception."""
        lines = [line.strip() for line in letter.error.splitlines() if line.strip()]
        times = "attempt" if letter.attempts == 1 else "attempts"
        return f"{letter.reason} after {letter.attempts} {times}" + (f": {lines[-1]}" if lines else "")

    async def vanished(self, agents: Mapping[str, str], quiet_s: float) -> tuple[list[str], list[str]]:
        """The messages to send again, and those that were sent again in vain. `agents`: who got which.

        A message is gone when its agent's queue and the run's mailbox hold nothing at all at two looks in
        a row, while no result has come for a while: somebody has purged the queue, or removed the store of
        messages. (A result may lie in the mailbox for as long as the lease of a runner that was killed.)
        """
        if quiet_s < _QUIET_S or not await self._is_empty(self._inbox):
            self._missed.clear()
            return [], []
        empty = {agent for agent in set(agents.values()) if await self._is_empty(agent)}
        self._missed = {name: self._missed.get(name, 0) + 1 for name, agent in agents.items() if agent in empty}
        gone = [name for name, looks in self._missed.items() if looks >= 2]
        for name in gone:
            self._missed[name] = 0
            self._resends[name] = self._resends.get(name, 0) + 1
        return (
            [name for name in gone if self._resends[name] <= _MAX_RESENDS],
            [name for name in gone if self._resends[name] > _MAX_RESENDS],
        )

    async def _is_empty(self, agent: str) -> bool:
        depth = await self._protocol.depth(agent)
        return depth.ready + depth.in_flight + depth.scheduled == 0
