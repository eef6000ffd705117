"""What `sys.exit` in a handler raises, on its way out of a task of its own: as it is it would end the event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Exits(Exception):
    """Stands for `error` inside the task."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


async def carried(work: Callable[[], Awaitable[T]]) -> T:
    """Its result; inside the task."""
    try:
        return await work()
    except (SystemExit, KeyboardInterrupt) as error:
        raise Exits(error) from error


@contextmanager
def told() -> Generator[None]:
    """Around the wait for the task: raises what was raised in it."""
    try:
        yield
    except Exits as exits:
        raise exits.error from None
