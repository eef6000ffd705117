"""Which messages were settled lately."""

from __future__ import annotations

from collections.abc import Hashable, Iterator


class Window:
    """A bounded memory of keys: at least the newest `size` of them, for at least `seconds`.

    Whichever bound is reached first starts a new generation; the one before it is kept whole. So a key
    is remembered for one to two times the bound. `new` and `old` are the generations: `key in window.new or
    key in window.old` is `key in window` without a call, for where each message counts.

    >>> window = Window(size=2, seconds=60)
    >>> for key in "abc": window.add(key, now=0)
    >>> "a" in window, "c" in window, "d" in window
    (True, True, False)
    """

    __slots__ = ("_began_at", "_seconds", "_size", "new", "old")

    def __init__(self, size: int, seconds: float) -> None:
        self._size = size
        self._seconds = seconds
        self.new: dict[Hashable, None] = {}
        self.old: dict[Hashable, None] = {}
        self._began_at: float | None = None

    def add(self, key: Hashable, now: float) -> None:
        new = self.new
        if len(new) >= self._size or (self._began_at is not None and now - self._began_at >= self._seconds):
            self.old, self.new = new, {}
            new = self.new
            self._began_at = now
        elif self._began_at is None:
            self._began_at = now
        new[key] = None

    def discard(self, key: Hashable) -> None:
        self.new.pop(key, None)
        self.old.pop(key, None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.new or key in self.old

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def __iter__(self) -> Iterator[Hashable]:
        """Oldest first."""
        yield from self.old
        yield from self.new

    def forget(self, before: float) -> int:
        """Drop the old generation if all of it was added before `before`; returns how many keys."""
        if self._began_at is None or self._began_at >= before:
            return 0
        dropped = len(self.old)
        self.old = {}
        return dropped
