"""Identifiers: ordered ones (UUIDv7, RFC 9562) and ones derived from their cause (UUIDv8)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import count
from threading import Lock
from time import time_ns


class _Ordered:
    """Makes UUIDv7 strings that rise within this process, in any thread.

    The 74 free bits are a 26 bit counter, which starts anew at a random place each millisecond, and
    48 bits that are random for the process.
    """

    __slots__ = ("_lock", "_now", "_tail")

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        self._lock = Lock()
        self._tail = "-" + os.urandom(6).hex()
        self._now: tuple[int, str, Iterator[int]] = (0, "", count())

    @property
    def state(self) -> tuple[str, tuple[int, str, Iterator[int]]]:
        """For tests: what it takes to go on from here later."""
        return self._tail, self._now

    @state.setter
    def state(self, state: tuple[str, tuple[int, str, Iterator[int]]]) -> None:
        self._tail, self._now = state

    def new(self) -> str:
        millis, prefix, numbers = self._now
        if time_ns() // 1_000_000 > millis:
            prefix, numbers = self._next_millisecond()
        number = next(numbers)  # one step for the interpreter: no two threads get the same
        return f"{prefix}{number >> 14:03x}-{0x8000 | number & 0x3FFF:x}{self._tail}"

    def _next_millisecond(self) -> tuple[str, Iterator[int]]:
        with self._lock:
            millis, prefix, numbers = self._now
            present = time_ns() // 1_000_000
            if present > millis:
                digits = f"{present:012x}"
                prefix = f"{digits[:8]}-{digits[8:]}-7"
                # The upper half stays free, so that a millisecond has room for 33 million ids.
                numbers = count(int.from_bytes(os.urandom(4), "big") & 0x1FFFFFF)
                self._now = (present, prefix, numbers)
            return prefix, numbers


_ordered = _Ordered()
os.register_at_fork(after_in_child=_ordered.reseed)

new_id = _ordered.new


def derived_id(*cause: object) -> str:
    """The UUIDv8 that always follows from the same cause.

    >>> derived_id("input", 0, "coder") == derived_id("input", 0, "coder")
    True
    """
    joined = "\x1f".join(f"{len(str(part))}:{part}" for part in cause)
    digest = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).digest()
    value = int.from_bytes(digest[:16], "big")
    value = value & ~(0xF << 76) | 0x8 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
