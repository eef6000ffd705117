"""What a handler can do: the context that it is called with."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from hivewire.coordination.exits import carried, told
from hivewire.delivery import Delivery
from hivewire.errors import Reject
from hivewire.ids import derived_id
from hivewire.message import BEGUN, EFFECTS, PROGRESS, Message
from hivewire.protocol import Protocol, Receipt

if TYPE_CHECKING:
    from hivewire.coordination.worker import Worker

T = TypeVar("T")
_MOST_BYTES: Final = 64 * 1024 * 1024
"""The result of an effect, as a ledger takes it."""


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
        compute it once; the others wait for it. An `fn` that raises stores nothing: the next attempt computes. One
        whose result cannot be kept (no JSON value, too large for the store) has done what it does: `Reject` is
        raised, so that there is no next attempt.

        A crash between the effect of `fn` and the storing of its result is a window: the next attempt computes it
        again. `find` closes it. After an attempt that ended without a result, `find` is asked first: it looks
        outside whether the effect has happened (by `effect_key(name)`, which `fn` gave to it), and returns its
        result, or None when it has not.
        """
        cause, replay, owner = self._effects
        scope = f"{owner}/{cause}/{replay}"
        compute, look = _kept(name, fn), None if find is None else _kept(name, find)
        if self.worker.effects is not None:
            return await self.worker.effects.once(f"{scope}/{name}", compute, look)
        return await self.protocol.once(scope, name, compute, look)


def _kept(name: str, fn: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """`fn`, plain or async, whose result is JSON: the same from each store, and never one that no store could keep."""

    async def call() -> Any:
        value = fn()
        if inspect.isawaitable(value):
            value = await value
        try:
            text = msgspec.json.encode(value)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it has {len(text):,} bytes, more than {_MOST_BYTES:,}")
            return msgspec.json.decode(text)
        except (ValueError, OverflowError, RecursionError, TypeError) as error:
            why = f"the result of the effect {name!r} cannot be kept as JSON: {error}"
            raise Reject(f"{why}; what it did is done, and is not done again") from error

    return call


class BlockingContext:
    """`Context` for a handler that runs in a thread: each call waits for its end."""

    __slots__ = ("_context", "_loop")

    def __init__(self, context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with told():
            return asyncio.run_coroutine_threadsafe(carried(call), self._loop).result()

    def send(self, type: str, to: str, content: Any = None, **fields: Any) -> Receipt:
        return self._wait(partial(Context.send, self._context, type, to, content, **fields))

    def reply(self, content: Any, *, type: str = "response", name: str | None = None) -> Receipt:
        return self._wait(partial(Context.reply, self._context, content, type=type, name=name))

    def progress(self, **content: Any) -> None:
        self._wait(partial(Context.progress, self._context, **content))

    def effect_key(self, name: str) -> str:
        return self._context.effect_key(name)

    def once(self, name: str, fn: Callable[[], T], *, find: Callable[[], T | None] | None = None) -> T:
        """`fn` and `find` run in a thread of the pool of `asyncio.to_thread`."""
        looking = None if find is None else partial(_in_a_thread, find)
        result: T = self._wait(partial(Context.once, self._context, name, partial(_in_a_thread, fn), find=looking))
        return result


async def _in_a_thread(fn: Callable[[], Any]) -> Any:
    value = await asyncio.to_thread(fn)
    return await value if inspect.isawaitable(value) else value


class PlainContext(Context):
    """`Context` of a plain function. In its thread a call waits for its end, as those of `blocking` do: nobody could
    await it there, so that what it was to send would be lost. On the event loop it is awaited."""

    def send(self, type: str, to: str, content: Any = None, **fields: Any) -> Any:
        if is_on_a_loop():
            return Context.send(self, type, to, content, **fields)
        return self.blocking.send(type, to, content, **fields)

    def reply(self, content: Any, *, type: str = "response", name: str | None = None) -> Any:
        if is_on_a_loop():
            return Context.reply(self, content, type=type, name=name)
        return self.blocking.reply(content, type=type, name=name)

    def progress(self, **content: Any) -> Any:
        return Context.progress(self, **content) if is_on_a_loop() else self.blocking.progress(**content)

    def once(self, name: str, fn: Callable[[], Any], *, find: Callable[[], Any] | None = None) -> Any:
        return Context.once(self, name, fn, find=find) if is_on_a_loop() else self.blocking.once(name, fn, find=find)


def is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
