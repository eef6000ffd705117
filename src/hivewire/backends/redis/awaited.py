"""What was sent and has no answer yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hivewire.backends.redis.address import Reply
from hivewire.backends.redis.link import good
from hivewire.errors import BackendError, ConnectionLost


class Batch:
    """Commands whose answers are waited for together."""

    __slots__ = ("answers", "asked_at", "beyond_s", "future", "told", "wanted")

    def __init__(
        self,
        future: asyncio.Future[list[Reply]] | None,
        wanted: int,
        asked_at: float,
        beyond_s: float = 0.0,
        told: Callable[[asyncio.Future[list[Reply]]], None] | None = None,
    ) -> None:
        self.future = future
        self.told = told
        """Called with the future when it is done."""
        self.wanted = wanted
        self.asked_at = asked_at
        self.beyond_s = beyond_s
        self.answers: list[Reply] = []


class Stored:
    """One command of which only what goes wrong is told."""

    __slots__ = ("asked_at", "future")
    beyond_s = 0.0

    def __init__(self, future: asyncio.Future[BackendError | None], asked_at: float) -> None:
        self.future = future
        self.asked_at = asked_at


def problem_of(answer: Reply) -> BackendError | None:
    """Why it was not stored."""
    try:
        if good(answer, "store a message") is None:
            return ConnectionLost("store a message: its stream, which must be there, is not")
    except BackendError as error:
        return error
    return None


def fail(
    future: asyncio.Future[list[Reply]] | asyncio.Future[BackendError | None] | None, error: ConnectionLost
) -> None:
    if future is not None and not future.done():
        future.set_exception(ConnectionLost(str(error)))
