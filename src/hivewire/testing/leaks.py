"""What a test may not leave behind: tasks, threads, file descriptors, child processes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import msgspec


def _descriptors() -> dict[str, str]:
    """Open descriptors and what they are, where the system tells."""
    found: dict[str, str] = {}
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return found
    for entry in folder.iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return found


def _threads() -> set[str]:
    # The loop's own executor threads stay until the loop is closed; they are not ours to end.
    return {
        f"{thread.name}#{thread.ident}" for thread in threading.enumerate() if not thread.name.startswith("asyncio_")
    }


def _tasks() -> set[str]:
    current = asyncio.current_task()
    return {repr(task) for task in asyncio.all_tasks() if task is not current and not task.done()}


@contextmanager
def no_unhandled_errors() -> Iterator[None]:
    """Fail when an error goes astray: in a callback, in a task that nobody awaits, in a line of the log that
    is an error."""
    loop = asyncio.get_running_loop()
    told: list[str] = []

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        # Not as a traceback: this may be called by the garbage collector in the middle of anything.
        told.append(f"{context.get('message')}: {context.get('exception')!r} {context.get('future', '')!r}")

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(f"{record.name}: {record.getMessage()} {record.exc_info and record.exc_info[1]!r}")

    before = loop.get_exception_handler()
    log, listener = logging.getLogger("hivewire"), Listener(logging.ERROR)
    log.addHandler(listener)
    loop.set_exception_handler(note)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
        log.removeHandler(listener)
    assert not told, "errors that nobody handled:\n  " + "\n  ".join(told)


class Census(msgspec.Struct, frozen=True):
    """What there was at one moment. Taken inside a running loop."""

    descriptors: dict[str, str]
    threads: set[str]
    tasks: set[str]

    @classmethod
    def take(cls) -> Self:
        return cls(_descriptors(), _threads(), _tasks())

    def added(self) -> list[str]:
        """What is there now and was not then."""
        now = type(self).take()
        files = [
            f"descriptor {name}: {target}"
            for name, target in now.descriptors.items()
            if target != self.descriptors.get(name)
        ]
        # A number may be used again by another file of the same kind: what counts is how many there are.
        if len(now.descriptors) <= len(self.descriptors):
            files = []
        return [
            *files,
            *(f"thread {name}" for name in sorted(now.threads - self.threads)),
            *(f"task {name}" for name in sorted(now.tasks - self.tasks)),
        ]

    async def check(self, within_s: float = 3.0) -> None:
        """Fail when something is left over `within_s` seconds from now."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while left := self.added():
            assert loop.time() < deadline, "left behind:\n  " + "\n  ".join(left)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def nothing_left_behind() -> AsyncIterator[None]:
    """Fail when what is done inside leaves something behind (`Census`), or an error goes astray."""
    before = Census.take()
    with no_unhandled_errors():
        yield
    await before.check()
