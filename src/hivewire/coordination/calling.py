"""Calling a worker's handlers: on the event loop, in a thread, or in a process of their own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hivewire.coordination.stopping import Stops, TooLate
from hivewire.message import STOPS, Message
from hivewire.protocol import Protocol
from hivewire.rules.retry import Retry

if TYPE_CHECKING:
    from hivewire.coordination.context import Context
    from hivewire.coordination.processes import Pool

Handler = Callable[[Message, Any], Any]
"""Called with a message and its `Context`; in a process of its own with a `ProcessContext`."""
THREADS: Final = "hivewire-"
"""How the names of the threads begin in which handlers run."""


class Entry(msgspec.Struct, frozen=True):
    """A handler and how it is to be called."""

    handler: Handler
    is_async: bool
    retry: Retry | None
    timeout_s: float | None
    in_process: bool


class Calls:
    """What one `Worker.serve` has of threads, processes, and knowledge of what is not wanted any more."""

    def __init__(self, name: str, concurrency: int, protocol: Protocol, processes: Pool | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._name, self._concurrency, self._protocol = name, concurrency, protocol
        # Made when they are needed: an agent that waits should take little.
        self._threads: ThreadPoolExecutor | None = None
        self._stops: Stops | None = None
        self._processes = processes

    async def call(self, entry: Entry, message: Message, context: Context) -> Any:
        """What the handler returns. Raises `Stopped` where the message is a subtask that is not wanted any more."""
        run = message.metadata.get(STOPS)
        if isinstance(run, str):
            if self._stops is None:
                self._stops = Stops(self._protocol)
            return await self._stops.guard(run, message.id, partial(self._call, entry, message, context))
        return await self._call(entry, message, context)

    async def close(self) -> None:
        """What runs in a thread runs on; its result is dropped."""
        if self._stops is not None:
            await self._stops.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()

    async def _call(self, entry: Entry, message: Message, context: Context, start_by: float = inf) -> Any:
        if entry.is_async:
            return await entry.handler(message, context)
        if entry.in_process and self._processes is not None:
            return await self._processes.run(entry.handler, message, context.attempt, start_by)
        result = await self._in_thread(entry.handler, message, context, start_by)
        return await result if inspect.isawaitable(result) else result  # a plain wrapper around an async function

    async def _in_thread(self, handler: Handler, message: Message, context: Context, start_by: float) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix=f"{THREADS}{self._name}")
        run = contextvars.copy_context().run

        def begin() -> Any:
            if time.monotonic() > start_by:
                raise TooLate
            try:
                return run(handler, message, context)
            except StopIteration as error:  # a future cannot hold it: its waiter would wait for ever
                raise RuntimeError("the handler raised StopIteration") from error

        return await self._loop.run_in_executor(self._threads, begin)
