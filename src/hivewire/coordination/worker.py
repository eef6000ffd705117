"""Workers: handlers by message type, and what a handler can do."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from hivewire.backend import Mode
from hivewire.codec import check_agent, check_group, check_type
from hivewire.codec.names import check_answerable
from hivewire.coordination.calling import Calls, Entry, Handler
from hivewire.coordination.context import Context as Context
from hivewire.coordination.context import PlainContext, is_on_a_loop
from hivewire.coordination.stopping import Stopped
from hivewire.delivery import Delivery
from hivewire.engine.outage import as_future, join, let_go
from hivewire.errors import HivewireError, MessageError, NoHandler, Reject, SettingsError, duration_s
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.rules.retry import Retry

if TYPE_CHECKING:
    from hivewire.coordination.effects import LedgerEffects
    from hivewire.coordination.processes import Pool

log = logging.getLogger(__name__)

HandlerT = TypeVar("HandlerT", bound=Handler)
ANY = "*"
"""A handler for every type that has none of its own."""


class Worker:
    """An agent's handlers. The same worker may be served in many processes.

    `capabilities` say what plans may ask of it, `role` what it is to those who look at a team; `concurrency` is how
    many messages one process handles at a time (of different keys, unless `mode="competing"`); `groups` are joined
    when it is first served; `effects`: a ledger that remembers what `Context.once` has done, in place of the
    protocol's store.
    """

    def __init__(
        self,
        name: str,
        *,
        capabilities: Sequence[str] = (),
        concurrency: int = 8,
        groups: Sequence[str] = (),
        mode: Mode = "ordered",
        role: str = "worker",
        effects: LedgerEffects | None = None,
    ) -> None:
        check_agent(name)
        for what, names in (("capabilities", capabilities), ("groups", groups)):
            if not _are_names(names):
                raise SettingsError(f"worker {name}: {what} are a list of names, not {names!r}")
        for group in groups:
            check_group(group)
        if type(concurrency) is not int or concurrency < 1:
            raise SettingsError(f"worker {name}: concurrency is a whole number, at least 1, not {concurrency!r}")
        if mode not in ("ordered", "competing"):
            raise SettingsError(f"worker {name}: mode is 'ordered' or 'competing', not {mode!r}")
        self.name = name
        self.capabilities = tuple(capabilities)
        self.concurrency = concurrency
        self.groups = tuple(groups)
        self.mode: Mode = mode
        self.role = role
        self.running = 0
        """Handlers under way in this process whose result somebody waits for."""
        self.effects = effects
        self._entries: dict[str, Entry] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def check(self) -> None:
        """Raise `SettingsError` when it cannot be served: who has no handler would bury every message."""
        if not self._entries:
            raise SettingsError(f"worker {self.name} has no handler: give it one with `.on(TYPE)` before it is served")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise SettingsError(f"worker {self.name} is not being served")
        return self._loop

    def on(
        self, type: str = ANY, *, retry: Retry | None = None, timeout_s: float | None = None, process: bool = False
    ) -> Callable[[HandlerT], HandlerT]:
        """Handle messages of this type (`"*"`: of every type without a handler of its own).

        An `async def` runs on the event loop, a plain `def` in a thread, where each call of its context waits
        for its end (`ctx.send(…)` or, for a type checker, `ctx.blocking.send(…)`). `retry` and `timeout_s` replace
        the protocol's defaults; after `timeout_s` the handler is cancelled, which is a failed attempt. A
        thread cannot be cancelled: its late result is dropped.

        With `process=True` a plain `def` at the top of a module runs in a process of its own, one of at most
        `concurrency`; its second argument knows the `attempt` alone. A process that dies is a failed attempt, and a
        handler that is cancelled ends with its process.
        """

        self._check_handling(type, retry, timeout_s)

        def register(handler: HandlerT) -> HandlerT:
            if type in self._entries:
                raise SettingsError(f"worker {self.name} has two handlers for {type!r}")
            if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
                raise SettingsError(f"worker {self.name}: the handler for {type!r} has a `yield`: nobody would run it")
            if not _takes_two(handler):
                raise SettingsError(f"worker {self.name}: the handler for {type!r} takes the message and a context")
            is_async = inspect.iscoroutinefunction(handler)
            if process and is_async:
                raise SettingsError(f"worker {self.name}: process=True is for a plain function, not for an async one")
            self._entries[type] = Entry(handler, is_async, retry, timeout_s, process)
            return handler

        return register

    def _check_handling(self, type: object, retry: object, timeout_s: object) -> None:
        """What is wrong here would be told to every message, and not to who wrote it."""
        if not isinstance(type, str):
            raise SettingsError(f'worker {self.name}: a handler is registered with `.on("TYPE")` or `.on()`')
        try:
            check_type(type)
            if timeout_s is not None and duration_s(timeout_s, "timeout_s") == 0:
                raise SettingsError("timeout_s is above 0, or None for the setting handler_timeout_s")
        except HivewireError as error:
            raise SettingsError(f"worker {self.name}, handler for {type!r}: {error}") from None
        if not isinstance(retry, Retry | None):
            raise SettingsError(f"worker {self.name}, handler for {type!r}: retry is a hivewire.Retry, not {retry!r}")

    def _entry(self, type: str) -> Entry | None:
        return self._entries.get(type) or self._entries.get(ANY)

    def _retry(self, type: str) -> Retry | None:
        entry = self._entry(type)
        return None if entry is None else entry.retry

    async def serve(self, protocol: Protocol, stop: Awaitable[object] | None = None, drain_s: float = 10.0) -> None:
        """Handle messages until `stop` is done or this is cancelled; what runs may finish for `drain_s`."""
        self.check()
        asked = as_future(stop)
        try:
            await join(asked, log, self.name, partial(self._subscribe, protocol))
            self._loop = asyncio.get_running_loop()
            handling = _Handling(self, protocol, self._pool())
            is_limited = any(entry.timeout_s for entry in self._entries.values())
            if self.effects is not None:
                self.effects.begin_use()
            try:
                await protocol.serve(
                    self.name,
                    handling,
                    concurrency=self.concurrency,
                    retry=self._retry,
                    timeout_of=self._timeout if is_limited else None,
                    stop=asked,
                    drain_s=drain_s,
                )
            finally:
                try:
                    await handling.close()
                finally:
                    if self.effects is not None:
                        await self.effects.end_use()
        finally:
            let_go(asked, stop)

    async def _subscribe(self, protocol: Protocol) -> None:
        await protocol.subscribe(self.name, self.types, groups=self.groups, mode=self.mode)

    def _pool(self) -> Pool | None:
        """Processes for the handlers that want one."""
        wanting = [entry.handler for entry in self._entries.values() if entry.in_process]
        if not wanting:
            return None
        from hivewire.coordination.processes import Pool, check

        for handler in wanting:
            check(self.name, handler)
        return Pool(self.name, self.concurrency)

    def _timeout(self, type: str) -> float | None:
        entry = self._entry(type)
        return None if entry is None else entry.timeout_s


def _check_answers(message: Message) -> None:
    """Where what is asked for could never be sent, the work is not done: it would be done at each attempt."""
    for name in ("reply_to", "start_to"):
        if name in message.metadata:
            try:
                check_answerable(message.metadata[name] or message.sender)
            except MessageError as error:
                raise Reject(f"its metadata asks for an answer that cannot be sent ({name}): {error}") from None


def _takes_two(handler: Handler) -> bool:
    if isinstance(handler, FunctionType):  # by its code: a signature leaves things with each of thousands of handlers
        code, defaults, names = handler.__code__, handler.__defaults__ or (), handler.__kwdefaults__ or {}
        most = 2 if code.co_flags & inspect.CO_VARARGS else code.co_argcount
        return code.co_argcount - len(defaults) <= 2 <= most and code.co_kwonlyargcount == len(names)
    try:
        inspect.signature(handler, follow_wrapped=False).bind(None, None)  # what is called, not what it wraps
    except TypeError:
        return False
    except ValueError:  # of a function in C nobody knows
        pass
    return True


def _are_names(names: object) -> bool:
    return isinstance(names, Sequence | Set) and not isinstance(names, str) and all(isinstance(n, str) for n in names)


class _Handling:
    """What `Worker.serve` does with a delivery. An object and no closures: there are as many as agents."""

    __slots__ = ("_calls", "_entries", "_pool", "_protocol", "_worker")

    def __init__(self, worker: Worker, protocol: Protocol, pool: Pool | None) -> None:
        self._worker = worker
        self._entries = worker._entries
        self._protocol = protocol
        self._pool = pool
        self._calls: Calls | None = None
        """Made when something is called that is no plain coroutine."""

    async def close(self) -> None:
        if self._calls is not None:
            await self._calls.close()
        elif self._pool is not None:
            self._pool.close()

    def __call__(self, delivery: Delivery) -> Awaitable[None]:
        message = delivery.message
        context = Context(self._worker, self._protocol, message, delivery)
        entry = self._entries.get(message.type) or self._entries.get(ANY)
        if entry is not None and entry.is_async and "reply_to" not in message.metadata:
            coroutine: Awaitable[None] = entry.handler(message, context)  # needs no other around it
            return coroutine
        return self._answer(entry, message, context)

    async def _answer(self, entry: Entry | None, message: Message, context: Context) -> None:
        if entry is None:
            raise NoHandler(f"worker {self._worker.name} has no handler for type {message.type!r} in this process")
        _check_answers(message)
        if "start_to" in message.metadata:
            await context.begun()
        if self._calls is None:
            self._calls = Calls(self._worker.name, self._worker.concurrency, self._protocol, self._pool)
        if not entry.is_async:
            context = PlainContext(self._worker, self._protocol, message, context._delivery)
        self._worker.running += 1
        try:
            result = await self._calls.call(entry, message, context)
        except Stopped as stopped:  # nobody waits for an answer
            log.info("not done", extra={"worker": self._worker.name, "reason": str(stopped)})
            return
        finally:
            self._worker.running -= 1
        if "reply_to" in message.metadata:
            try:
                await context.reply(result, type="result", name="result")
            except MessageError as error:  # the work would be done at each attempt, and end here all the same
                raise Reject(f"the handler's result cannot be sent: {error}") from error


def check_together(workers: Sequence[Worker]) -> None:
    """Raise `SettingsError` where one process cannot serve them all: what is for the one of two with one name would
    come to the other, too, which has no handler for it."""
    names = [worker.name for worker in workers]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two workers are named {name}: give all handlers to one, and raise its concurrency")


def _check_run(workers: Sequence[object], grace_s: object) -> None:
    """What is wrong would be noticed with the first signal, when nothing may go wrong any more."""
    if threading.current_thread() is not threading.main_thread():
        raise SettingsError("hivewire.run waits for signals, so it runs in the main thread; elsewhere: Worker.serve")
    if is_on_a_loop():
        raise SettingsError(
            "hivewire.run makes an event loop of its own; in one that runs: await Worker.serve(protocol)"
        )
    found = [worker for worker in workers if isinstance(worker, Worker)]
    if not workers or len(found) < len(workers):
        raise SettingsError(f"hivewire.run serves Workers: hivewire.run(coder, writer), not {workers!r:.80}")
    for worker in found:
        worker.check()
    check_together(found)
    try:
        duration_s(grace_s, "grace_s")
    except MessageError as error:
        raise SettingsError(f"hivewire.run: {error}") from None


_imported = ContextVar("imported", default=False)


@contextmanager
def imported() -> Generator[None]:
    """While a command imports a module for the workers in it: `run` at its end does nothing."""
    before = _imported.set(True)
    try:
        yield
    finally:
        _imported.reset(before)


def run(*workers: Worker, target: Any = None, grace_s: float = 10.0, **settings: Any) -> None:
    """Serve the workers in this process until SIGTERM or SIGINT; then let what runs finish for `grace_s`.
    A second signal ends at once. Uses uvloop when it is installed. Where a command imports the module that calls
    this, to serve its workers itself, it does nothing."""
    if _imported.get():
        log.info("run is left to the command that imports this module")
        return
    from hivewire.coordination.serving import run_until_signal
    from hivewire.factory import connect

    _check_run(workers, grace_s)
    run_until_signal(workers, lambda: connect(target, **settings), grace_s)
