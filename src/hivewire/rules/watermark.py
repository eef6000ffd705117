"""How far a log is finished, where only one position a shard can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush


class Watermark:
    """The position below which every record is finished, and those above it that are, too.

    Committing anything above it would lose the unfinished ones after a crash. Positions may have gaps.

    >>> mark = Watermark(start=10)
    >>> [mark.take(at) for at in (10, 11, 13)]
    [True, True, True]
    >>> mark.finish(11)
    >>> mark.at, mark.ahead
    (10, [11])
    >>> mark.finish(10)
    >>> mark.at, mark.ahead
    (13, [])
    """

    __slots__ = ("_ahead", "_end", "_open", "_order")

    def __init__(self, start: int, ahead: Iterable[int] = ()) -> None:
        self._end = start
        self._open: set[int] = set()
        self._order: list[int] = []
        self._ahead = {at for at in ahead if at >= start}

    def take(self, at: int) -> bool:
        """The record at this position is held. False: it is finished already, by this owner or one before.
        Positions come in rising order, but for those that come again."""
        if at >= self._end:
            self._end = at + 1
            if at in self._ahead:
                return False
        elif at in self._open:
            return True
        elif self.is_finished(at):
            return False
        self._open.add(at)
        heappush(self._order, at)
        return True

    def take_run(self, ats: Sequence[int]) -> bool:
        """`take` for all of these, which rise. False: none is taken, as some of them may be finished or held."""
        if ats[0] < self._end or not self._ahead.isdisjoint(ats):
            return False
        self._end = ats[-1] + 1
        self._open.update(ats)
        self._order.extend(ats)  # above all others, so it still is a heap
        return True

    def finish(self, at: int) -> None:
        self.finish_all((at,))

    def finish_all(self, ats: Sequence[int]) -> None:
        held, order = self._open, self._order
        held.difference_update(ats)
        while order and order[0] not in held:
            heappop(order)
        low = order[0] if order else self._end
        self._ahead.update([at for at in ats if at >= low])
        if len(self._ahead) > 2 * len(held) + 16:
            self._ahead = {position for position in self._ahead if position >= low}

    def is_finished(self, at: int) -> bool:
        """By this owner or one before."""
        return at in self._ahead or (at < self.at and at not in self._open)

    @property
    def at(self) -> int:
        while self._order and self._order[0] not in self._open:
            heappop(self._order)
        return self._order[0] if self._order else self._end

    @property
    def end(self) -> int:
        """Above all that was ever taken."""
        return self._end

    @property
    def ahead(self) -> list[int]:
        """Finished positions above the watermark, rising."""
        low = self.at
        self._ahead = {position for position in self._ahead if position >= low}
        return sorted(self._ahead)
