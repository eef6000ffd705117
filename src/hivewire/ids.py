"""Identifiers: ordered ones (UUIDv7, RFC 9562) and ones derived from their cause (UUIDv8)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from random import Random
from threading import Lock
from time import time_ns
from typing import Final


class _Ordered:
    """Makes UUIDv7 strings that rise within this process, in any thread.

    The 74 free bits are a 26 bit counter, which starts anew at a random place each millisecond, and
    48 bits that are random for the process. An id is two texts put together: a head (the millisecond
    and the counter but for its lowest 8 bits) and one of 256 tails (those bits and the process).
    """

    __slots__ = ("_block", "_chance", "_lock", "_now", "_tails")

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        process = os.urandom(6).hex()
        self._chance = Random(os.urandom(16))  # asking the system each millisecond is dear
        self._lock = Lock()
        self._tails = tuple(f"{low:02x}-{process}" for low in range(256))
        self._block = 0
        """The counter without its lowest 8 bits."""
        self._now: tuple[int, str, Iterator[str]] = (0, "", iter(()))
        """When the head's millisecond is over, the head, and the tails that it has not had yet."""

    @property
    def state(self) -> tuple[tuple[str, ...], int, tuple[int, str, Iterator[str]]]:
        """For tests: what it takes to go on from here later."""
        return self._tails, self._block, self._now

    @state.setter
    def state(self, state: tuple[tuple[str, ...], int, tuple[int, str, Iterator[str]]]) -> None:
        self._tails, self._block, self._now = state

    def new(self) -> str:
        until_ns, head, tails = self._now
        if time_ns() < until_ns:
            for tail in tails:  # one step for the interpreter: no two threads get the same
                return head + tail
        return self._with_new_head()

    def _with_new_head(self) -> str:
        with self._lock:
            until_ns, head, tails = self._now
            present_ns = time_ns()
            if present_ns >= until_ns:
                # The upper half stays free, so that a millisecond has room for 33 million ids.
                self._block = self._chance.getrandbits(17)
                until_ns = (present_ns // 1_000_000 + 1) * 1_000_000
            elif (tail := next(tails, None)) is not None:
                return head + tail  # another thread has been here
            else:
                self._block += 1
            digits = f"{until_ns // 1_000_000 - 1:012x}"
            head = f"{digits[:8]}-{digits[8:]}-7{self._block >> 6:03x}-{0x80 | self._block & 0x3F:x}"
            tails = iter(self._tails)
            first = next(tails)
            self._now = (until_ns, head, tails)
            return head + first


_ordered = _Ordered()
os.register_at_fork(after_in_child=_ordered.reseed)

new_id = _ordered.new


_VARIANT: Final = {f"{digit:x}": f"{digit & 3 | 8:x}" for digit in range(16)}
"""The two highest bits of this digit are 10 in every UUID (RFC 9562)."""


def derived_id(*cause: object) -> str:
    """The UUIDv8 that always follows from the same cause.

    >>> derived_id("input", 0, "coder") == derived_id("input", 0, "coder")
    True
    """
    joined = "\x1f".join([f"{len(text)}:{text}" for text in map(str, cause)])
    digits = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:32]}"
