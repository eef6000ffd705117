"""When what fails is tried again."""

from __future__ import annotations


class Backoff:
    """Ever longer waits for as long as it fails: at first soon, as most failures are short.

    >>> backoff = Backoff(first_s=0.1, most_s=0.3)
    >>> [backoff.next_s() for _ in range(3)]
    [0.1, 0.2, 0.3]
    >>> backoff.is_over()
    >>> backoff.next_s()
    0.1
    """

    __slots__ = ("_first_s", "_most_s", "_next_s")

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def next_s(self) -> float:
        """How long to wait after it has failed once more."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._most_s)
        return wait_s

    def is_over(self) -> None:
        """It has worked."""
        self._next_s = self._first_s
