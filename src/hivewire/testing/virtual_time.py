"""Runs on virtual time: hours pass in milliseconds, and a run always goes the same way."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from random import Random
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

from hivewire import ids
from hivewire.testing.virtual_loop import EPOCH, Deadlock, Livelock, VirtualLoop

_T = TypeVar("_T")
_P = ParamSpec("_P")


def run_virtual(main: Coroutine[Any, Any, _T], *, loop: VirtualLoop | None = None) -> _T:
    """Run `main` on a virtual loop and return its result. Raises `Deadlock` when it would wait for ever, and
    `Livelock` when it goes on for ever; then what cannot be cancelled is left behind."""
    used = loop or VirtualLoop()
    asyncio.set_event_loop(used)
    try:
        task = used.create_task(main)
        try:
            result = used.run_until_complete(task)
        except BaseException:
            with suppress(Deadlock, Livelock):
                _end(used)
            raise
        _end(used)
        return result
    finally:
        asyncio.set_event_loop(None)
        used.close()


def _end(loop: VirtualLoop) -> None:
    """As `asyncio.Runner` does it, but without looking through the tasks of all the loops before this one."""
    loop.continue_all()  # or the tasks of what is stopped could not be cancelled
    left = loop.unfinished()
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    for task in left:
        if not task.cancelled() and task.exception() is not None:
            told = {"message": "at the end of virtual time", "exception": task.exception(), "task": task}
            loop.call_exception_handler(told)
    loop.run_until_complete(loop.shutdown_asyncgens())


def virtual(test: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """Make an async test a plain one that runs on virtual time. Works with every fixture of pytest.

    >>> @virtual
    ... async def test_an_hour() -> float:
    ...     before = asyncio.get_running_loop().time()
    ...     await asyncio.sleep(3600)
    ...     return asyncio.get_running_loop().time() - before
    >>> test_an_hour()
    3600.0
    """

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        return run_virtual(test(*args, **kwargs))

    return run


@contextmanager
def seeded_ids(seed: int) -> Generator[None]:
    """Inside, `hivewire.ids.new_id` gives the same identifiers in each run of the same seed."""
    chance = Random(seed)
    clock = patch.object(ids, "time_ns", lambda: int(EPOCH * 1e9))
    noise = patch.object(ids, "os", SimpleNamespace(urandom=chance.randbytes))
    before = ids._ordered.state
    try:
        with clock, noise:
            ids._ordered.reseed()
            yield
    finally:
        ids._ordered.state = before


def is_repeatable() -> bool:
    """True when sets of strings, too, are walked in the same order by each process (PYTHONHASHSEED)."""
    return os.environ.get("PYTHONHASHSEED", "random") != "random"
