"""How much to take ahead."""

from __future__ import annotations

_AHEAD_S = 0.05
_MOST_LANES = 1_000
_WEIGHT = 0.2


class Pace:
    """Quick handlers take many keys ahead, slow ones none, so that no other member waits for work that
    is only held: what is held beyond the free slots is what the slots handle in 50 ms.

    >>> pace = Pace()
    >>> pace.lanes(slots=8, free=8)
    8
    >>> pace.observe(handled=100, seconds=1.0)
    >>> pace.lanes(slots=8, free=8)
    48
    """

    __slots__ = ("_mean_s",)

    def __init__(self) -> None:
        self._mean_s: float | None = None

    def observe(self, handled: int, seconds: float) -> None:
        mean = seconds / handled
        self._mean_s = mean if self._mean_s is None else self._mean_s + _WEIGHT * (mean - self._mean_s)

    def lanes(self, slots: int, free: int) -> int:
        """How many keys to hold that are not being handled."""
        if self._mean_s is None:
            return free
        ahead = slots * _AHEAD_S / max(self._mean_s, 1e-7)
        return int(min(free + ahead, max(_MOST_LANES, free)))
