"""What is done together: many ends at once, and one question for many who ask. A connection is answered one question at
a time, and a hundred would stand in line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class _Round(Generic[_Asked, _Answer]):
    def __init__(self) -> None:
        self.asked: list[_Asked] = []
        self.answers: list[_Answer] = []
        """One, when it is there."""


class Together(Generic[_Asked, _Answer]):
    """While one question is open, all who ask wait, and the next one is for all of them."""

    def __init__(self, put: Callable[[Sequence[_Asked]], Awaitable[_Answer]]) -> None:
        """If `put` raises, or who waits for it is cancelled, the next one who asked with them puts it again."""
        self._put = put
        self._next = _Round[_Asked, _Answer]()
        self._open = asyncio.Lock()

    async def ask(self, one: _Asked) -> _Answer:
        round = self._next
        round.asked.append(one)
        async with self._open:
            if not round.answers:
                if self._next is round:
                    self._next = _Round()
                round.answers.append(await self._put(round.asked))
        return round.answers[0]


async def all_of(ends: Sequence[Awaitable[None]]) -> None:
    """Each to its end, then the first problem."""
    for problem in await asyncio.gather(*ends, return_exceptions=True):
        if problem is not None:
            raise problem
