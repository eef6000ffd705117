"""Workers: handlers by message type, and what a handler can do."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from hivewire.backend import Mode
from hivewire.codec import check_agent
from hivewire.coordination.calling import Calls, Entry, Handler
from hivewire.coordination.stopping import Stopped
from hivewire.delivery import Delivery
from hivewire.errors import NoHandler, SettingsError
from hivewire.ids import derived_id
from hivewire.message import BEGUN, EFFECTS, PROGRESS, Message
from hivewire.protocol import Protocol, Receipt
from hivewire.rules.retry import Retry

if TYPE_CHECKING:
    from hivewire.coordination.effects import LedgerEffects
    from hivewire.coordination.processes import Pool

log = logging.getLogger(__name__)

HandlerT = TypeVar("HandlerT", bound=Handler)
T = TypeVar("T")

ANY = "*"
"""A handler for every type that has none of its own."""


class Context(msgspec.Struct, eq=False):
    """What a handler knows beside the message, and what it can do.

    The id of everything it sends follows from the message it handles, the recipient, the type and a
    running number (or `name`). So when the message is delivered again, receivers recognise what they have
    had already. A handler that sends to one recipient in changing order gives each a `name`.
    """

    worker: Worker
    protocol: Protocol
    message: Message
    _delivery: Delivery

    @property
    def attempt(self) -> int:
        """1 at the first start of a handler for this message; crashes count."""
        return self._delivery.attempt

    @property
    def blocking(self) -> BlockingContext:
        """The same for a plain function, which runs in a thread."""
        return BlockingContext(self, self.worker.loop)

    def _output_id(self, to: str, type: str, name: str | None) -> str:
        cause = name if name is not None else self._delivery.next_output(to, type)
        return derived_id(self.message.id, self._delivery.replay, to, type, cause)

    async def send(
        self,
        type: str,
        to: str,
        content: Any = None,
        *,
        name: str | None = None,
        delay_s: float = 0,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Receipt:
        """Send as this worker. `fields` are those of `Message`."""
        fields.setdefault("id", self._output_id(to, type, name))
        message = Message(type=type, sender=self.worker.name, to=to, content=content, **fields)
        return await self.protocol.send(message, delay_s=delay_s, idempotency_key=idempotency_key)

    async def reply(self, content: Any, *, type: str = "response", name: str | None = None) -> Receipt:
        """Answer where the message asks for it (`metadata["reply_to"]`), else its sender."""
        to = self.message.metadata.get("reply_to") or self.message.sender
        answer = Message(
            type=type,
            sender=self.worker.name,
            to=to,
            content=content,
            in_reply_to=self.message.id,
            id=self._output_id(to, type, name),
        )
        return await self.protocol.deliver_reply(answer)

    async def progress(self, **content: Any) -> None:
        """Tell whoever follows the work (`metadata["progress_to"]`), if anybody does."""
        to = self.message.metadata.get("progress_to")
        if to:
            await self._tell(to, content)

    async def begun(self) -> None:
        """Tell whoever asked for it (`metadata["start_to"]`) that a handler starts now."""
        await self._tell(self.message.metadata["start_to"], {"state": BEGUN, "message": self.message.id})

    async def _tell(self, to: str, content: dict[str, Any]) -> None:
        event = Message(
            type="event",
            sender=self.worker.name,
            to=to,
            content=content,
            metadata={PROGRESS: True},
            in_reply_to=self.message.id,
            id=self._output_id(to, "event", None)
            if self.attempt == 1
            else derived_id(
                self.message.id,
                self._delivery.replay,
                to,
                "event",
                self.attempt,
                self._delivery.next_output(to, "event"),
            ),
        )
        await self.protocol.deliver_reply(event)

    def effect_key(self, name: str) -> str:
        """A key for an effect outside: the same at every attempt of this message, over restarts and takeovers; in a
        plan's subtask also over send-backs and new plans, as long as the subtask keeps its name."""
        return derived_id(*self._effects, "effect", name)

    @property
    def _effects(self) -> tuple[str, int, str]:
        """What this message's effects belong to."""
        subtask = self.message.metadata.get(EFFECTS)
        if isinstance(subtask, str):
            return (subtask, 0, "plan")  # whoever of the team does it
        return (self.message.id, self._delivery.replay, self.worker.name)

    async def once(self, name: str, fn: Callable[[], Any], *, find: Callable[[], Any] | None = None) -> Any:
        """The stored result of `fn` (plain or async) for this message and name; computed only if there is none.

        The result (any JSON value) is stored before it is returned and kept for 24 times the idempotency
        window, a day by default; in a ledger (`Worker(effects=…)`) until it is purged. Attempts at the same time
        compute it once; the others wait for it. An `fn` that raises stores nothing: the next attempt computes.

        A crash between the effect of `fn` and the storing of its result is a window: the next attempt computes it
        again. `find` closes it. After an attempt that ended without a result, `find` is asked first: it looks
        outside whether the effect has happened (by `effect_key(name)`, which `fn` gave to it), and returns its
        result, or None when it has not.
        """
        cause, replay, owner = self._effects
        scope = f"{owner}/{cause}/{replay}"
        compute, look = _awaited(fn), None if find is None else _awaited(find)
        if self.worker.effects is not None:
            return await self.worker.effects.once(f"{scope}/{name}", compute, look)
        return await self.protocol.once(scope, name, compute, look)


def _awaited(fn: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def call() -> Any:
        value = fn()
        return await value if inspect.isawaitable(value) else value

    return call


class BlockingContext:
    """`Context` for a handler that runs in a thread: each call waits for its end."""

    __slots__ = ("_context", "_loop")

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def send(self, type: str, to: str, content: Any = None, **fields: Any) -> Receipt:
        return self._wait(self._context.send(type, to, content, **fields))

    def reply(self, content: Any, *, type: str = "response", name: str | None = None) -> Receipt:
        return self._wait(self._context.reply(content, type=type, name=name))

    def progress(self, **content: Any) -> None:
        self._wait(self._context.progress(**content))

    def effect_key(self, name: str) -> str:
        return self._context.effect_key(name)

    def once(self, name: str, fn: Callable[[], T], *, find: Callable[[], T | None] | None = None) -> T:
        """`fn` and `find` run in a thread of the pool of `asyncio.to_thread`."""
        looking = None if find is None else partial(asyncio.to_thread, find)
        result: T = self._wait(self._context.once(name, partial(asyncio.to_thread, fn), find=looking))
        return result


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
            if isinstance(names, str):
                raise SettingsError(f"worker {name}: {what} are a list of names, not one str")
        if concurrency < 1:
            raise SettingsError(f"worker {name}: concurrency must be at least 1, not {concurrency}")
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

        An `async def` runs on the event loop, a plain `def` in a thread. `retry` and `timeout_s` replace
        the protocol's defaults; after `timeout_s` the handler is cancelled, which is a failed attempt. A
        thread cannot be cancelled: its late result is dropped.

        With `process=True` a plain `def` at the top of a module runs in a process of its own, one of at most
        `concurrency`; its second argument knows the `attempt` alone. A process that dies is a failed attempt, and a
        handler that is cancelled ends with its process.
        """

        def register(handler: HandlerT) -> HandlerT:
            if type in self._entries:
                raise SettingsError(f"worker {self.name} has two handlers for {type!r}")
            is_async = inspect.iscoroutinefunction(handler)
            if process and is_async:
                raise SettingsError(f"worker {self.name}: process=True is for a plain function, not for an async one")
            self._entries[type] = Entry(handler, is_async, retry, timeout_s, process)
            return handler

        return register

    def _entry(self, type: str) -> Entry | None:
        return self._entries.get(type) or self._entries.get(ANY)

    def _retry(self, type: str) -> Retry | None:
        entry = self._entry(type)
        return None if entry is None else entry.retry

    async def serve(self, protocol: Protocol, stop: Awaitable[object] | None = None, drain_s: float = 10.0) -> None:
        """Handle messages until `stop` is done or this is cancelled; what runs may finish for `drain_s`."""
        types = self.types
        self.check()
        await protocol.subscribe(self.name, types, groups=self.groups, mode=self.mode)
        self._loop = asyncio.get_running_loop()
        handling = _Handling(self, protocol, self._pool())
        is_limited = any(entry.timeout_s for entry in self._entries.values())
        try:
            await protocol.serve(
                self.name,
                handling,
                concurrency=self.concurrency,
                retry=self._retry,
                timeout_of=self._timeout if is_limited else None,
                stop=stop,
                drain_s=drain_s,
            )
        finally:
            await handling.close()

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
        if "start_to" in message.metadata:
            await context.begun()
        if self._calls is None:
            self._calls = Calls(self._worker.name, self._worker.concurrency, self._protocol, self._pool)
        self._worker.running += 1
        try:
            result = await self._calls.call(entry, message, context)
        except Stopped as stopped:  # nobody waits for an answer
            log.info("not done", extra={"worker": self._worker.name, "reason": str(stopped)})
            return
        finally:
            self._worker.running -= 1
        if "reply_to" in message.metadata:
            await context.reply(result, type="result", name="result")


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

    run_until_signal(workers, lambda: connect(target, **settings), grace_s)
