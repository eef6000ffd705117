"""What another machine's clock says, told by a clock of one's own."""

from __future__ import annotations


class StoreClock:
    """The store's time, as far as its answers bound it. All times are seconds since the epoch.

    An estimate that an answer does not prove wrong stays as it is, so that what is stamped with it does not step
    back with each answer that took its time; one that is wrong is moved no further than to where it may be right
    (the two bounds of Cristian, "Probabilistic clock synchronization", 1989).

    >>> clock = StoreClock()
    >>> clock.told(asked_at=100.0, store_now=107.0, answered_at=102.0)  # ahead by 5 to 7 s
    >>> clock.at(110.0)
    116.0
    >>> clock.told(asked_at=120.0, store_now=126.5, answered_at=124.0)  # by 2.5 to 6.5 s: it may be 6
    >>> clock.at(130.0)
    136.0
    >>> clock.told(asked_at=140.0, store_now=145.2, answered_at=140.4)  # by 4.8 to 5.2 s
    >>> round(clock.at(150.0), 6)
    155.2
    """

    __slots__ = ("_ahead_s", "_is_known")

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._is_known = False

    def at(self, here: float) -> float:
        return here + self._ahead_s

    def told(self, *, asked_at: float, store_now: float, answered_at: float) -> None:
        """The store said `store_now` at some time between the question and its answer."""
        least, most = store_now - answered_at, store_now - asked_at
        if not least <= self._ahead_s <= most:
            if self._is_known:
                self._ahead_s = least if self._ahead_s < least else most
            else:
                self._ahead_s = (least + most) / 2
        self._is_known = True

    def not_before(self, at: float, here: float) -> None:
        """The store has stamped something with `at`: its clock is that far at least."""
        self._ahead_s = max(self._ahead_s, at - here)
