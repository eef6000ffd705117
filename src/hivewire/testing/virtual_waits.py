"""What the virtual loop keeps for later: callbacks and pauses, each with the simulated process that it belongs to."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any, Final

process: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("process", default=None)
"""The simulated process that a callback belongs to. Tasks, timers and futures inherit it."""

WAKE: Final[Callable[[asyncio.Future[Any], Any], None]] = vars(asyncio.futures)["_set_result_unless_cancelled"]
"""Sets a future's result: what `asyncio.sleep` leaves to a timer. The virtual loop does so itself, and calls nobody."""


class Handle(asyncio.TimerHandle):
    """Has no more than is needed, and a handle without a time is one, too. The loop makes it without a call of
    `__init__`: there are thousands a run."""

    __slots__ = ()

    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _context: contextvars.Context
    _cancelled: bool
    _when: float

    @property
    def owner(self) -> str | None:
        """The simulated process that it belongs to."""
        return self._context.get(process)

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = _nothing
        self._args = ()

    def __repr__(self) -> str:
        state = " cancelled" if self._cancelled else ""
        return f"<call{state} {self._callback!r} with {self._args!r}>"


new_handle: Final = Handle.__new__


def _nothing() -> None:
    """What is cancelled does nothing."""


class Pause:
    """What a task may wait for in place of a future: its timer wakes the task itself, and not a future that does."""

    __slots__ = ("_asyncio_future_blocking", "_is_cancelled", "_loop", "_timer", "_when")

    def __init__(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._loop = loop
        self._when = when
        self._is_cancelled = False
        self._timer: asyncio.TimerHandle | None = None

    def __await__(self) -> Generator[Pause]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, wake: Callable[[Pause], object], *, context: contextvars.Context) -> None:
        self._timer = self._loop.call_at(self._when, wake, self, context=context)

    def cancel(self, msg: object = None) -> bool:
        timer = self._timer
        if self._is_cancelled or not isinstance(timer, Handle) or timer._cancelled:
            return False
        self._is_cancelled = True
        self._loop.call_soon(timer._callback, *timer._args, context=timer._context)
        timer.cancel()
        return True

    def result(self) -> None:
        self._timer = (
            None  # which names the pause: without this no task that ever slept would go before it is collected
        )
        if self._is_cancelled:
            raise asyncio.CancelledError
