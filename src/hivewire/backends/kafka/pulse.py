"""A thread that says that the members of competing queues live, however busy the event loop is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hivewire.backends.kafka.seat import Seat

_EACH_S: Final = 0.5


class Pulse:
    """Runs while there are members."""

    def __init__(self) -> None:
        self._seats: tuple[Seat, ...] = ()
        self._gone = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, seat: Seat) -> None:
        if seat not in self._seats:
            self._seats = (*self._seats, seat)
        if self._thread is None:
            self._gone.clear()
            self._thread = threading.Thread(target=self._run, name="hivewire-kafka-claims", daemon=True)
            self._thread.start()

    def remove(self, seat: Seat) -> None:
        self._seats = tuple(one for one in self._seats if one is not seat)

    def _run(self) -> None:
        while not self._gone.wait(_EACH_S):
            for seat in self._seats:
                seat.beat()

    def end(self) -> None:
        """It beats no more when this returns."""
        self._gone.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
