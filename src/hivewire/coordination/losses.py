"""Finds the messages that nobody will answer: dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hivewire.protocol import DeadLetter, Protocol

_PAGE: Final = 100


class Losses:
    """Looks at the queues of a team. Each look starts where the last one ended."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._cursors: dict[str, str] = {}

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
