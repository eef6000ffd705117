"""What became of every single message of a load test; nothing is sampled or estimated."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hivewire.rules.histogram import Histogram

_RECORD = struct.Struct("<IIqq")
_MOST_TIMES = 255
_CHUNK = _RECORD.size * 4096


class Handled(NamedTuple):
    """A handler was started for message `number` of `key`. Times are of the machine's monotonic clock,
    which all its processes share."""

    started_ns: int
    key: int
    number: int
    intended_ns: int

    def packed(self) -> bytes:
        return _RECORD.pack(self.key, self.number, self.intended_ns, self.started_ns)


def read_handled(path: Path) -> Iterator[Handled]:
    """The records of one worker process, in the order of their times; a torn last one is left out."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            whole = len(chunk) // _RECORD.size * _RECORD.size
            for key, number, intended_ns, started_ns in _RECORD.iter_unpack(chunk[:whole]):
                yield Handled(started_ns, key, number, intended_ns)


def count_handled(path: Path) -> int:
    """How many records a worker process has written so far."""
    return path.stat().st_size // _RECORD.size if path.exists() else 0


class Second(NamedTuple):
    """One second of the run: messages that were due in it, and their latencies."""

    latency_us: Histogram
    handled: list[int]


class Tally:
    """Counts by key and number.

    A message is lost when it was confirmed and neither handled nor found elsewhere. It is out of order
    when its first delivery came after the first delivery of a later number of the same key.

    >>> tally = Tally(keys=1, start_ns=0)
    >>> for number in range(3):
    ...     tally.confirm(0, number)
    >>> for number in (1, 0, 1):
    ...     tally.handle(Handled(started_ns=5, key=0, number=number, intended_ns=0))
    >>> tally.handled, tally.duplicates, tally.out_of_order, tally.missing()
    (2, 1, 1, [(0, 2)])
    """

    def __init__(self, keys: int, start_ns: int) -> None:
        self._start_ns = start_ns
        self._times = [bytearray() for _ in range(keys)]
        self._confirmed = [bytearray() for _ in range(keys)]
        self._highest = [-1] * keys
        self.confirmed = 0
        self.handled = 0
        self.duplicates = 0
        self.out_of_order = 0
        self.last_ns = start_ns
        self.latency_us = Histogram()
        self.seconds: dict[int, Second] = {}

    def confirm(self, key: int, number: int) -> None:
        """The store has said that it holds the message."""
        self.confirmed += 1
        _grown(self._confirmed[key], number)[number] = 1

    def handle(self, record: Handled) -> None:
        """A handler was started for the message. Call in the order of the records' times."""
        started_ns, key, number, intended_ns = record
        times = _grown(self._times[key], number)
        times[number] = min(times[number] + 1, _MOST_TIMES)
        self.last_ns = max(self.last_ns, started_ns)
        if times[number] > 1:
            self.duplicates += 1
            return
        self.handled += 1
        if number < self._highest[key]:
            self.out_of_order += 1
        else:
            self._highest[key] = number
        latency_us = (started_ns - intended_ns) // 1000
        self.latency_us.add(latency_us)
        self._second(intended_ns).latency_us.add(latency_us)
        self._second(started_ns).handled[0] += 1

    def handle_all(self, records: Iterable[Handled]) -> None:
        for record in records:
            self.handle(record)

    def missing(self) -> list[tuple[int, int]]:
        """(key, number) of what was confirmed and never handled."""
        found: list[tuple[int, int]] = []
        for key, (confirmed, times) in enumerate(zip(self._confirmed, self._times, strict=True)):
            handled = times.ljust(len(confirmed), b"\0")
            found += [(key, number) for number, yes in enumerate(confirmed) if yes and not handled[number]]
        return found

    def _second(self, at_ns: int) -> Second:
        index = max((at_ns - self._start_ns) // 1_000_000_000, 0)
        found = self.seconds.get(index)
        if found is None:
            found = self.seconds[index] = Second(Histogram(), [0])
        return found


def _grown(flags: bytearray, number: int) -> bytearray:
    """The flags, long enough for `number`."""
    if number >= len(flags):
        flags.extend(bytes(number + 1 - len(flags) + len(flags) // 2))
    return flags
