"""How far a shard is, in few bytes: what a store that keeps one small value a shard must carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

_VERSION: Final = 2
_RUNNING, _FAILED, _CRASHED, _SHIFT = 1, 2, 4, 3


class History(msgspec.Struct, gc=False):
    """What is known of one unfinished record."""

    at: int
    starts: int = 0
    failures: int = 0
    crashes: int = 0
    running: bool = False


class Progress(msgspec.Struct):
    """A shard at one moment. Records below `watermark` are finished, and those in `ahead`, which rises.
    `history`: rising, the unfinished ones of which something is known. Records from `taken_to` on were
    with nobody."""

    watermark: int = 0
    ahead: Sequence[int] = ()
    history: Sequence[History] = ()
    taken_to: int = 0

    @property
    def running(self) -> int:
        return sum([entry.running for entry in self.history])


def encode(progress: Progress, most_bytes: int = 1 << 30) -> bytes:
    """At most so many bytes. What does not fit is left out from the end: then a crash repeats records that
    were finished, or counts starts too few; nothing is lost by it."""
    low = progress.watermark
    found = bytearray([_VERSION])
    _put(found, low)
    _put(found, max(0, progress.taken_to - low))
    known = _histories(low, progress.history, (most_bytes - len(found)) * 2 // 3)
    runs = _runs(low, progress.ahead)
    body = bytearray()
    for pair in zip(runs[::2], runs[1::2], strict=True):
        before = len(body)
        for number in pair:
            _put(body, number)
        if len(found) + len(body) + len(known) + 3 > most_bytes:
            del body[before:]
            break
    _put(found, len(body))
    return bytes(found + body + known)


def decode(saved: bytes) -> Progress:
    """Raises `ValueError` for bytes that `encode` has not made."""
    if not saved:
        return Progress()
    if saved[0] != _VERSION:
        raise ValueError(f"progress of a shard in version {saved[0]}, not {_VERSION}: written by another release")
    try:
        low, place = _get(saved, 1)
        taken, place = _get(saved, place)
        size, place = _get(saved, place)
        ends, end = place + size, low
        ahead: list[int] = []
        while place < ends:
            gap, place = _get(saved, place)
            length, place = _get(saved, place)
            ahead.extend(range(end + gap, end + gap + length))
            end += gap + length
        return Progress(low, ahead, _read_histories(low, saved, place), low + taken)
    except IndexError:
        raise ValueError("progress of a shard: it ends too early") from None


def _histories(low: int, entries: Iterable[History], most_bytes: int) -> bytearray:
    found, before = bytearray(), low
    for entry in entries:
        start = len(found)
        flags = entry.running * _RUNNING + bool(entry.failures) * _FAILED + bool(entry.crashes) * _CRASHED
        _put(found, entry.at - before)
        _put(found, entry.starts << _SHIFT | flags)
        for number in (entry.failures, entry.crashes):
            if number:
                _put(found, number)
        if len(found) > most_bytes:
            del found[start:]
            break
        before = entry.at
    return found


def _read_histories(low: int, saved: bytes, place: int) -> list[History]:
    entries, at = [], low
    while place < len(saved):
        distance, place = _get(saved, place)
        head, place = _get(saved, place)
        at += distance
        entry = History(at, head >> _SHIFT, running=bool(head & _RUNNING))
        if head & _FAILED:
            entry.failures, place = _get(saved, place)
        if head & _CRASHED:
            entry.crashes, place = _get(saved, place)
        entries.append(entry)
    return entries


def _runs(low: int, positions: Sequence[int]) -> list[int]:
    """Rising positions as pairs (distance, length): a long run costs two numbers."""
    runs: list[int] = []
    end = low
    for at in positions:
        if runs and at == end:
            runs[-1] += 1
        else:
            runs += [at - end, 1]
        end = at + 1
    return runs


def _put(found: bytearray, number: int) -> None:
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)


def _get(saved: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = saved[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7
