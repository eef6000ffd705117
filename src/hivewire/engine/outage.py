"""What is tried again and again while a store is away is told once, and that it is over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from hivewire.errors import BackendError
from hivewire.rules.backoff import Backoff

T = TypeVar("T")

_AGAIN_S = 60.0
_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0


class Outage:
    """One thing that cannot be done for a while."""

    __slots__ = ("_began_at", "_doing", "_log", "_queue", "_told_at")

    def __init__(self, log: logging.Logger, doing: str, queue: str) -> None:
        self._log = log
        self._doing = doing
        self._queue = queue
        self._began_at: float | None = None
        self._told_at = 0.0

    def goes_on(self, error: Exception) -> None:
        """A warning at its begin and each minute; in between at the level of DEBUG."""
        now = time.monotonic()
        is_news = self._began_at is None or now - self._told_at >= _AGAIN_S
        if self._began_at is None:
            self._began_at = now
        if is_news:
            self._told_at = now
        level = logging.WARNING if is_news else logging.DEBUG
        self._log.log(level, "cannot %s yet", self._doing, extra={"queue": self._queue, "error": str(error)})

    def is_over(self) -> None:
        if self._began_at is not None:
            lasted_s = round(time.monotonic() - self._began_at, 1)
            self._began_at = None
            self._log.info("can %s again", self._doing, extra={"queue": self._queue, "after_s": lasted_s})


def as_future(stop: Awaitable[object] | None) -> asyncio.Future[object] | None:
    """For several who wait for it, until `let_go`. No context manager: each agent that is served would hold one."""
    return None if stop is None else asyncio.ensure_future(stop)


def let_go(future: asyncio.Future[object] | None, stop: Awaitable[object] | None) -> None:
    """What `as_future` has made of a coroutine ends; a future of the caller's is left alone."""
    if future is not None and future is not stop:
        future.cancel()


async def join(
    stop: asyncio.Future[object] | None, log: logging.Logger, queue: str, call: Callable[[], Awaitable[T]]
) -> T | None:
    """`keep_trying` for who begins to take from a queue. None: `stop` was done before, and nothing was begun.

    Whatever ends it is raised inside of `call`, which leaves nothing behind: no task of its own that could end at
    the moment in which nobody takes its result any more.
    """
    outage = Outage(log, "begin to take messages", queue)
    if stop is None:
        return await keep_trying(outage, call)
    if stop.done():
        return None
    time = asyncio.get_running_loop().time
    limit = asyncio.timeout(None)

    def end(_: object) -> None:
        with suppress(RuntimeError):  # it has joined in the same moment
            limit.reschedule(time())

    try:
        async with limit:
            stop.add_done_callback(end)
            try:
                return await keep_trying(outage, call)
            finally:
                stop.remove_done_callback(end)
    except TimeoutError:
        if limit.expired():
            return None
        raise


async def keep_trying(outage: Outage, call: Callable[[], Awaitable[T]]) -> T:
    """What comes of it when the store is back."""
    backoff = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
    while True:
        try:
            result = await call()
        except BackendError as error:
            if not error.retryable:
                raise
            outage.goes_on(error)
            await asyncio.sleep(backoff.next_s())
            continue
        outage.is_over()
        return result
