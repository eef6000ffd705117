"""What was sent and has no answer yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from hivewire.backends.redis.address import PACKED, Command, Reply
from hivewire.backends.redis.link import good
from hivewire.errors import BackendError, ConnectionLost

Redirect = Callable[[str, Command, bool], "asyncio.Future[Reply] | None"]
"""Told of an error, of the command that it answers, and whether that sends messages: the answer of whoever was asked in
place of this server, which is a value even if it is an error; or None, if there is none."""


class Batch:
    """Commands whose answers are waited for together."""

    __slots__ = (
        "answers",
        "asked_at",
        "beyond_s",
        "commands",
        "elsewhere",
        "firm",
        "future",
        "told",
        "wanted",
        "when_whole",
    )

    def __init__(
        self,
        future: asyncio.Future[list[Reply]] | None,
        commands: Sequence[Command],
        asked_at: float,
        beyond_s: float = 0.0,
        told: Callable[[asyncio.Future[list[Reply]]], None] | None = None,
        *,
        firm: bool = False,
    ) -> None:
        self.future = future
        self.firm = firm
        """See `Link.post`."""
        self.told = told
        """Called with the future when it is done."""
        self.commands = commands
        self.wanted = len(commands)
        self.asked_at = asked_at
        self.beyond_s = beyond_s
        self.answers: list[Reply] = []
        self.elsewhere = 0
        """How many of the commands have been asked of another server and have no answer yet."""
        self.when_whole: Callable[[], None] | None = None
        """Called when those have come too, if somebody waits for them."""

    def sent_on(self, redirect: Redirect, text: str) -> None:
        """The next answer is this error, if it is not had elsewhere."""
        place = len(self.answers)
        elsewhere = redirect(text, self.commands[place], self.firm)
        if elsewhere is not None:
            self.elsewhere += 1
            elsewhere.add_done_callback(partial(self._came, place))

    def await_the_rest(self) -> None:
        """All that comes from the server that was asked is here."""
        if self.future is not None:
            self.when_whole = self._finish

    def _finish(self) -> None:
        assert self.future is not None
        if not self.future.done():
            self.future.set_result(self.answers)
            if self.told is not None:
                self.told(self.future)

    def _came(self, place: int, answered: asyncio.Future[Reply]) -> None:
        self.answers[place] = answered.result()
        self.elsewhere -= 1
        if not self.elsewhere and self.when_whole is not None:
            self.when_whole()


class Stored:
    """One command of which only what goes wrong is told."""

    __slots__ = ("asked_at", "elsewhere", "future", "packed")
    beyond_s = 0.0

    def __init__(self, future: asyncio.Future[BackendError | None], packed: bytes, asked_at: float) -> None:
        self.future = future
        self.packed = packed
        self.asked_at = asked_at
        self.elsewhere = False
        """See `Batch`."""

    def sent_on(self, redirect: Redirect, text: str) -> None:
        """See `Batch`."""
        elsewhere = redirect(text, (PACKED, "", self.packed), True)
        if elsewhere is not None:
            self.elsewhere = True
            elsewhere.add_done_callback(self._came)

    def _came(self, answered: asyncio.Future[Reply]) -> None:
        if not self.future.done():
            self.future.set_result(problem_of(answered.result()))


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
