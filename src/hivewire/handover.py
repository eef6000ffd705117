"""From a thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any


class Handover:
    """Calls `take` on the event loop with what threads have put here, in its order.

    `call_soon_threadsafe` says so to the loop's own descriptor, which uvloop looks at in two rounds: 13 us from the
    thread to the loop, where a descriptor of one's own takes 4.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[Any], None]) -> None:
        self._loop = loop
        self._take = take
        self._waiting: deque[Any] = deque()
        self._bell = -1
        if hasattr(os, "eventfd"):  # Linux
            bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                loop.add_reader(bell, self._rung)
            except BaseException as error:
                os.close(bell)
                if not isinstance(error, NotImplementedError):
                    raise
            else:
                self._bell = bell

    def put(self, what: Any) -> None:
        """From any thread, until `close` is called."""
        self._waiting.append(what)
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(self._take_all)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            return  # nobody has put anything since
        self._take_all()

    def _take_all(self) -> None:
        try:
            while self._waiting:
                self._take(self._waiting.popleft())
        finally:
            if self._waiting:  # it failed with this one, and the others must come all the same
                self._loop.call_soon(self._take_all)

    def close(self) -> None:
        """On the event loop, when no thread puts anything more; what is there is still handed over."""
        bell, self._bell = self._bell, -1
        if bell >= 0:
            self._loop.remove_reader(bell)
            os.close(bell)
        self._take_all()
