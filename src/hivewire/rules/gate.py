"""What of one partition is handed to the client of the store now, and what is held until it has answered."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

FEW: Final = 5
"""With so many out the client holds back what it is given, too: librdkafka's idempotent producer does, and asks itself
all the time whether it still must."""


class Gate(Generic[T]):
    """Items leave in the order in which they came.

    While some are out, others are held: each burst is one request, not several. Before one was ever stored, one alone
    is out: if the first of two requests fails and the second is stored, their order is lost.

    >>> gate = Gate[str]()
    >>> gate.held += "a", "b"
    >>> gate.take(), gate.take()
    (['a'], [])
    >>> gate.stored(), gate.take()
    (True, ['b'])
    """

    __slots__ = ("held", "is_proven", "out")

    def __init__(self) -> None:
        self.held: list[T] = []
        self.out = 0
        self.is_proven = False
        """One was stored, and none has failed since."""

    @property
    def grows_old(self) -> bool:
        """What is held could leave, and is held for the sake of larger requests alone."""
        return self.is_proven and self.out < FEW and bool(self.held)

    def take(self, *, at_once: bool = False) -> list[T]:
        """What may leave: it is out then. With `at_once` a few that are out are not waited for."""
        if self.out and not (at_once and self.grows_old):
            return []
        if self.is_proven:
            taken, self.held = self.held, []
        else:
            taken, self.held = self.held[:1], self.held[1:]
        self.out += len(taken)
        return taken

    def stored(self, count: int = 1) -> bool:
        """So many that were out are there. Whether something may leave now."""
        self.out -= count
        self.is_proven = True
        return not self.out and bool(self.held)

    def refused(self) -> bool:
        """One that was out will never be there, however often it is sent. Whether something may leave now."""
        self.out -= 1
        return not self.out and bool(self.held)

    def failed(self) -> list[T]:
        """One that was out is not there, and may come again: returns what stands behind it, so that nothing of that
        is stored before."""
        self.out -= 1
        self.is_proven = False
        behind, self.held = self.held, []
        return behind
