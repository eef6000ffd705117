"""Which messages were settled lately."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final

_NOTHING: Final[dict[Hashable, None]] = {}
"""No generation before: never written to."""


class Window:
    """A bounded memory of keys: at least the newest `size` of them, for at least `seconds`.

    Whichever bound is reached first starts a new generation; the one before it is kept whole. So a key
    is remembered for one to two times the bound. `new` and `old` are the generations, in the open for where a
    call for each message is too much: `key in window.new or key in window.old`, `window.new[key] = None`.

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
        self.old = _NOTHING
        self._began_at: float | None = None

    def add(self, key: Hashable, now: float) -> None:
        self.tidy(now)
        self.new[key] = None

    def tidy(self, now: float) -> None:
        """Start a new generation if a bound is reached. Who writes to `new` itself calls this first, once
        for several keys; so many more may then be remembered."""
        if self._began_at is None:
            self._began_at = now
        elif len(self.new) >= self._size or now - self._began_at >= self._seconds:
            self.old, self.new = self.new, {}
            self._began_at = now

    def discard(self, key: Hashable) -> None:
        self.new.pop(key, None)
        if self.old:
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
        self.old = _NOTHING
        return dropped


class Keys:
    """Idempotency keys by the time of the message that used each first. Bounded; the oldest are forgotten first.

    >>> keys = Keys(size=2, seconds=10)
    >>> keys.add("a", at=100.0)
    >>> keys.is_used("a", at=109.0), keys.is_used("a", at=111.0)
    (True, False)
    """

    __slots__ = ("_seconds", "_size", "_used")

    def __init__(self, size: int, seconds: float) -> None:
        self._size = size
        self._seconds = seconds
        self._used: dict[str, float] = {}

    def add(self, key: str, at: float) -> None:
        self._used.pop(key, None)
        self._used[key] = at
        if len(self._used) > self._size:
            del self._used[next(iter(self._used))]

    def discard(self, key: str) -> None:
        self._used.pop(key, None)

    def is_used(self, key: str, at: float) -> bool:
        """By a message stored less than the window before."""
        first = self._used.get(key)
        return first is not None and at - first < self._seconds
