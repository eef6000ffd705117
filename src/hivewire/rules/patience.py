"""For how long a busy shard may stand still so that it can be given up."""

from __future__ import annotations

_FIRST_S = 2.0
_MOST_S = 32.0
_PAUSE = 4.0


class Patience:
    """A shard that is wanted elsewhere starts nothing until what runs in it has ended. When that takes too long it
    works on and is tried again later, with twice the patience: long handlers, too, have an end that can be waited
    for, and a shard never stands still for more than a fifth of the time.

    >>> patience = Patience()
    >>> patience.may_begin(now=10.0)
    True
    >>> patience.is_over(now=11.9), patience.is_over(now=12.0)
    (False, True)
    >>> patience.may_begin(now=19.9), patience.may_begin(now=20.0)
    (False, True)
    >>> patience.is_over(now=23.9), patience.is_over(now=24.0)
    (False, True)
    """

    __slots__ = ("_length_s", "_until")

    def __init__(self) -> None:
        self._length_s = _FIRST_S
        self._until: float | None = None
        """While shards rest: for how long they may. Else: when they may rest again; None: at once."""

    def may_begin(self, now: float, *, goes_on: bool = False) -> bool:
        """Whether shards may come to rest now; then the time runs. `goes_on`: others rest already, and these join
        them."""
        if goes_on:
            return True
        if self._until is not None and now < self._until:
            return False
        self._until = now + self._length_s
        return True

    def is_over(self, now: float) -> bool:
        """Whether those that rest must work on; then they may not rest again at once."""
        if self._until is None or now < self._until:
            return False
        self._until = now + _PAUSE * self._length_s
        self._length_s = min(2 * self._length_s, _MOST_S)
        return True

    def moved(self, *, goes_on: bool) -> None:
        """It has worked. `goes_on`: others still rest."""
        self._length_s = _FIRST_S
        if not goes_on:
            self._until = None

    def left_s(self, now: float) -> float:
        """When to look again."""
        return _FIRST_S if self._until is None else max(self._until - now, 0.01)
