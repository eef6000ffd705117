"""Who is next when messages of several priorities wait: the more urgent sooner, none never.

Each priority is a level with a weight, half as much again as the level below it. When levels compete, each gets a
share of the turns in proportion to its weight: so the least urgent one of all ten still has one turn in 113.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, Generic, TypeVar

T = TypeVar("T")

STEP: Final = 1.5
LEVELS: Final = tuple(range(10, 0, -1))
"""The most urgent first."""


def weight(priority: int) -> float:
    """A level's part of the turns, against level 1.

    >>> weight(1), weight(2)
    (1.0, 1.5)
    """
    return float(STEP ** (min(max(priority, 1), 10) - 1))


_NO_LEVELS: Final[frozenset[int]] = frozenset()


class Shares:
    """Weighted fair queueing: the turn goes to the level whose next turn would end first, on a clock that runs as
    turns are used. A level that was away does not come back with what it did not use."""

    __slots__ = ("_ends", "_now", "_were")

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}
        self._now = 0.0
        self._were = _NO_LEVELS

    def pick(self, waiting: Sequence[int]) -> int:
        """Whose turn it is of these levels, of which there is at least one.

        >>> shares = Shares()
        >>> [shares.pick((10, 8)) for _ in range(7)]
        [10, 10, 8, 10, 10, 8, 10]
        """
        ends = self._ends
        for level in waiting:
            if level not in self._were:
                ends[level] = max(ends.get(level, 0.0), self._now)
        self._were = frozenset(waiting)
        best = min(waiting, key=lambda level: (ends[level] + 1 / weight(level), -level))
        self._now = max(self._now, ends[best])
        ends[best] += 1 / weight(best)
        return best

    def plan(self, turns: int) -> list[int]:
        """So many turns as if all ten levels waited, the most urgent first: for a store that does not tell which
        levels do. What a level leaves of its turns goes to the most urgent that waits."""
        return sorted((self.pick(LEVELS) for _ in range(turns)), reverse=True)


class Lines(Generic[T]):
    """What waits, in a line for each level. `popleft` takes from the line whose turn it is."""

    __slots__ = ("_level_of", "_levels", "_lines", "_shares")

    def __init__(self, level_of: Callable[[T], int]) -> None:
        self._level_of = level_of
        self._lines: dict[int, deque[T]] = {}
        self._levels: Sequence[int] = ()
        """Those that were ever used, the most urgent first."""
        self._shares: Shares | None = None
        """Made when two levels wait for the first time."""

    def _line(self, item: T) -> deque[T]:
        level = self._level_of(item)
        line = self._lines.get(level)
        if line is None:
            line = self._lines[level] = deque()
            self._levels = sorted(self._lines, reverse=True)
        return line

    def append(self, item: T) -> None:
        line = self._lines.get(self._level_of(item))
        (self._line(item) if line is None else line).append(item)

    def appendleft(self, item: T) -> None:
        self._line(item).appendleft(item)

    def extend(self, items: Iterable[T]) -> None:
        for item in items:
            self.append(item)

    def popleft(self) -> T:
        """Raises `IndexError` when nothing waits."""
        lines = self._lines
        if len(lines) == 1:
            return lines[self._levels[0]].popleft()
        waiting = [level for level in self._levels if lines[level]]
        if len(waiting) > 1:
            if self._shares is None:
                self._shares = Shares()
            return lines[self._shares.pick(waiting)].popleft()
        if not waiting:
            raise IndexError("nothing waits")
        return lines[waiting[0]].popleft()

    def clear(self) -> None:
        for line in self._lines.values():
            line.clear()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return any(self._lines.values())

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._lines[level] for level in self._levels)
