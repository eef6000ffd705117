"""What waits and can be done together with others of its kind."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Kinds(Generic[T]):
    """Items of several kinds, handed out in batches of one kind: whoever waits longest goes first and takes along
    those of its kind, in their order.

    >>> kinds = Kinds[int](most_bytes=100)
    >>> for kind, item in (("a", 1), ("b", 2), ("a", 3), ("a", 4)):
    ...     kinds.add(kind, item, size=10)
    >>> kinds.take(2), kinds.take(2), kinds.take(2), kinds.take(2)
    ([1, 3], [2], [4], [])
    """

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._waiting: dict[str, deque[tuple[int, int, T]]] = {}
        self._numbers = count()
        self._length = 0

    def add(self, kind: str, item: T, *, size: int) -> None:
        """One more, of `size` bytes."""
        self._length += 1
        self._waiting.setdefault(kind, deque()).append((next(self._numbers), size, item))

    def take(self, most: int) -> list[T]:
        """The next batch of at most so many, one at least however large it is; empty when nothing waits."""
        if not self._waiting:
            return []
        kind = min(self._waiting, key=lambda each: self._waiting[each][0][0])
        items = self._waiting[kind]
        batch: list[T] = []
        left = self._most_bytes
        while items and len(batch) < most and (not batch or items[0][1] <= left):
            _, size, item = items.popleft()
            left -= size
            batch.append(item)
        if not items:
            del self._waiting[kind]
        self._length -= len(batch)
        return batch

    def __len__(self) -> int:
        return self._length
