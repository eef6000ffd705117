"""Finds the messages that nobody will answer: dead letters."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Final

from hivewire.errors import last_words
from hivewire.protocol import DeadLetter, Protocol

_PAGE: Final = 100


class Losses:
    """Looks at queues. Each look starts where the last one ended: behind the last letter that was dealt with."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._cursors: dict[str, str] = {}

    async def dead(self, agents: Iterable[str]) -> AsyncGenerator[DeadLetter]:
        """The dead letters since the last look; at the first one, all of them. One counts as dealt with when the next
        one is asked for: what fails in between comes again."""
        for agent in agents:
            while letters := await self._protocol.dead_letters(agent, limit=_PAGE, after=self._cursors.get(agent)):
                for letter in letters:
                    yield letter
                    self._cursors[agent] = letter.cursor

    def why(self, letter: DeadLetter) -> str:
        """The reason in one line."""
        said = last_words(letter.error)
        times = "attempt" if letter.attempts == 1 else "attempts"
        return f"{letter.reason} after {letter.attempts} {times}" + (f": {said}" if said else "")
