"""When asking a store a little later, for more at once, costs less than asking for each message as it comes.

Network cards do the same with their interrupts. A consumer that takes one or two messages with each question spends
most of its time on questions; where senders do not wait for what they send to be handled, a short rest changes nothing
but how many come with the next one.
"""

from __future__ import annotations

from typing import Final

PAUSE_S: Final = 0.001
OFTEN_S: Final = 0.0005
"""Questions that follow each other at more than this are rare enough."""
_FEW: Final = 8
"""Batches of so many on average are large enough."""
_MUCH: Final = 32
"""After such a batch nobody rests: more waits."""
_MEASURED: Final = 64
_TRIED: Final = 16
"""Batches without and with rests by which both are compared."""
_TRUST_S: Final = 1.0
"""So long rests that have paid go on, before they are compared anew."""
_SHARE: Final = 0.9
_FIRST_WAIT_S: Final = 1.0
_MOST_WAIT_S: Final = 60.0


class Moderation:
    """Rests are tried where questions are frequent and bring little, and go on as long as they do not slow down what
    comes: who waits for an answer before it sends the next would.

    >>> moderation = Moderation()
    >>> [moderation.after(2, 0.0004 * number) for number in range(65)][-2:]
    [0.0, 0.001]
    """

    __slots__ = ("_batches", "_first_at", "_plain_rate", "_records", "_rests", "_trust_s", "_wait_s", "_wait_until")

    def __init__(self) -> None:
        self._rests = False
        self._batches = -1
        """Since the first of a stretch that is measured."""
        self._records = 0
        self._first_at = 0.0
        self._plain_rate = 0.0
        self._trust_s = 0.0
        self._wait_s = _FIRST_WAIT_S
        self._wait_until = 0.0

    def after(self, came: int, now: float) -> float:
        """For how many seconds to rest after a batch of so many messages, which came `now`."""
        self._batches += 1
        if self._batches == 0:
            self._first_at = now
        else:
            self._records += came
            self._compare(now)
        return PAUSE_S if self._rests and came < _MUCH else 0.0

    def _compare(self, now: float) -> None:
        seconds = now - self._first_at
        if not self._rests:
            if self._batches >= _MEASURED:
                is_busy = seconds < OFTEN_S * self._batches and self._records < _FEW * self._batches
                if is_busy and seconds > 0 and now >= self._wait_until:
                    self._plain_rate = self._records / seconds
                    self._rests = True
                self._begin(now)
        elif self._batches >= _TRIED and seconds >= self._trust_s:
            if self._records >= _SHARE * self._plain_rate * seconds:
                self._trust_s, self._wait_s = _TRUST_S, _FIRST_WAIT_S
            else:
                self._trust_s, self._wait_until = 0.0, now + self._wait_s
                self._wait_s = min(2 * self._wait_s, _MOST_WAIT_S)
            self._rests = False
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._batches, self._records, self._first_at = 0, 0, now
