"""What is tried again and again while a store is away is told once, and that it is over."""

from __future__ import annotations

import logging
import time

_AGAIN_S = 60.0


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
