"""Messages through a pipe whose other end may be killed in the middle of one.

What that process has forked holds its end open, so that no end of the pipe tells of its death: who waits looks
whether it lives.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

_LOOK_S: Final = 1.0
_PIECE: Final = 1 << 20
_length = struct.Struct("!Q")


class Pipe:
    """One end. Raises `EOFError` or `OSError` once the process at the other end is dead, as `is_alive` says, and what
    it had written is read."""

    def __init__(self, connection: Connection, is_alive: Callable[[], bool]) -> None:
        self._connection = connection
        self._is_alive = is_alive
        self._number = connection.fileno()
        os.set_blocking(self._number, False)

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def send(self, message: bytes) -> None:
        for part in (_length.pack(len(message)), message):
            left = memoryview(part)
            while left:
                self._until(select.POLLOUT)
                left = left[os.write(self._number, left) :]

    def receive(self) -> bytes:
        (length,) = _length.unpack(self._read(_length.size))
        return self._read(length)

    def _read(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            self._until(select.POLLIN)
            piece = os.read(self._number, min(count - len(found), _PIECE))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def _until(self, event: int) -> None:
        """It can be read, or written, without waiting."""
        poll = select.poll()
        poll.register(self._number, event)
        while not poll.poll(_LOOK_S * 1000):
            if not self._is_alive() and not poll.poll(0):
                raise EOFError

    def close(self) -> None:
        self._connection.close()
