"""The engine: every promise of the protocol, once, over any backend."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Self

import msgspec

from hivewire.backend import Append, Backend, Depth, Mode, Room
from hivewire.codec import check_agent
from hivewire.codec.names import check_texts
from hivewire.delivery import Delivery
from hivewire.engine import looking
from hivewire.engine.asked import check_ids, check_message, check_subscription, check_value, letters_of
from hivewire.engine.claims import blob_store
from hivewire.engine.core import handling
from hivewire.engine.crew import Crew
from hivewire.engine.delivery import OPEN, EngineDelivery
from hivewire.engine.explain import explain, note_letters
from hivewire.engine.middleware import Middleware
from hivewire.engine.once import Once
from hivewire.engine.opened import Opened, check_durable
from hivewire.engine.outage import Outage, as_future, join, keep_trying, let_go
from hivewire.engine.outgoing import Outgoing
from hivewire.engine.pull import Puller
from hivewire.errors import Closed, MessageError, SettingsError, Unsupported, duration_s
from hivewire.message import Message
from hivewire.protocol import (
    DeadLetter,
    Delayed,
    Explanation,
    Handle,
    Health,
    Protocol,
    ProtocolMetrics,
    Receipt,
    Schedule,
    Subscription,
    Value,
)
from hivewire.rules.retry import Retry
from hivewire.rules.schedule import CatchUp
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_VALUE_PREFIX = "value/"
_ONCE_WINDOWS = 24
_SEND_S = 30
_STRANGE_LOOP = "this protocol is used in another event loop (or thread): connect in each, with hivewire.connect"


class Engine(Protocol):
    """The protocol over one backend. Opened by `async with` or by the first call."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        *,
        outgoing: Sequence[Middleware] = (),
        incoming: Sequence[Middleware] = (),
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self._blobs = blob_store(settings.blobs, backend)
        self._middleware = tuple(outgoing), tuple(incoming)
        self._rng = rng or random.Random()
        self._parts: Opened | None = None
        self._plain: Outgoing | None = None
        """While it is open, and what is sent is looked at by nobody on its way."""
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Lock | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- life

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def _ready(self) -> Opened:
        if self._parts is None or self._closed or self._loop is not asyncio.get_running_loop():
            return await self._start()
        return self._parts

    async def _start(self) -> Opened:
        if self._opening is None:
            self._loop, self._opening = asyncio.get_running_loop(), asyncio.Lock()
        elif self._loop is not asyncio.get_running_loop():
            raise Unsupported(_STRANGE_LOOP)
        async with self._opening:
            if self._closed:
                raise Closed("the protocol was closed; make a new one with hivewire.connect")
            if self._parts is None:
                self._parts = await self._connect()
                self._plain = self._parts.outgoing if self._parts.outgoing.is_plain else None
            return self._parts

    async def _connect(self) -> Opened:
        await self.backend.open()
        try:
            check_durable(self.settings, self.backend.features)
            if self._closed:
                raise Closed("the protocol was closed while it connected")
        except BaseException:
            await self.backend.close()
            raise
        return Opened(self.settings, self.backend, self._rng, self._middleware, self._blobs, self.send)

    async def close(self, drain_s: float = 10) -> None:
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise Unsupported(_STRANGE_LOOP)
        drain_s = duration_s(drain_s, "drain_s")
        if self._closing is None:
            self._closed, self._plain = True, None
            self._closing = asyncio.ensure_future(self._shut(drain_s))
        await asyncio.shield(self._closing)

    async def _shut(self, drain_s: float) -> None:
        if self._opening is not None:
            async with self._opening:  # who is connecting now finishes or fails first
                pass
        if self._parts is not None:
            await self._parts.shut(drain_s)

    def abandon(self) -> None:
        """As if this process was killed: nothing is settled or given back, leases run out. For tests."""
        self._closed, self._plain = True, None
        self.backend.abandon()
        if self._parts is not None:
            self._parts.consumers.abandon()
            self._closing = asyncio.ensure_future(self._parts.abandon())

    # -- sending

    async def send(
        self, message: Message, *, delay_s: float = 0, idempotency_key: str | None = None, timeout_s: float = _SEND_S
    ) -> Receipt:
        if timeout_s != _SEND_S:
            timeout_s = duration_s(timeout_s, "timeout_s")
        plain = self._plain
        if plain is not None and delay_s == 0 and idempotency_key is None and not plain.sender.lines:
            if self._loop is not asyncio.get_running_loop():
                raise Unsupported(_STRANGE_LOOP)
            queue, record = plain.record(message)
            room = Room.CAP if handling.get() is None else Room.RESERVE
            backend = self.backend
            if len(record.body) > plain.most_inline:
                await plain.sender.append((Append(queue, (record,), room=room),), timeout_s)
            elif backend.append_now(queue, record, room):
                plain.metrics.messages_sent += 1
                if backend.crowded:
                    await backend.give_way()
            else:
                await plain.sender.one(queue, record, room, timeout_s)
            return Receipt(message.id)
        parts = await self._ready()
        return await parts.outgoing.send(message, duration_s(delay_s, "delay_s"), idempotency_key, timeout_s)

    async def send_many(self, messages: Sequence[Message], *, timeout_s: float = _SEND_S) -> list[Receipt]:
        parts = await self._ready()
        return await parts.outgoing.send_many(messages, duration_s(timeout_s, "timeout_s"))

    async def request(self, message: Message, *, timeout_s: float = 30.0) -> Message:
        replies = (await self._ready()).replies
        check_message(message)
        timeout_s = duration_s(timeout_s, "timeout_s")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await replies.open(message.id, timeout_s)
        waiter = replies.expect(message.id)
        asked = message.replace(metadata={**message.metadata, "reply_to": replies.address})
        try:
            await self.send(asked, timeout_s=max(0.0, deadline - loop.time()))
        except BaseException:
            replies.forget(message.id)
            raise
        answer = await replies.wait(message.id, waiter, max(0.0, deadline - loop.time()), timeout_s)
        return answer.replace(to=message.sender)  # it came to a mailbox, whose address nobody knows

    async def reply(self, message: Message, content: Any, *, type: str = "response") -> Receipt:
        parts = await self._ready()
        check_message(message)
        return await parts.outgoing.reply(message, content, type)

    async def deliver_reply(self, answer: Message) -> Receipt:
        """Store a reply; it is never refused for a full queue, and dropped when nobody waits any more."""
        parts = await self._ready()
        return await parts.outgoing.deliver_reply(answer)

    async def broadcast(self, message: Message, group: str, *, durable: bool = True) -> Receipt:
        parts = await self._ready()
        check_message(message)
        return await parts.outgoing.broadcast(message, group, durable=durable)

    # -- receiving

    async def receive(self, agent: str, *, limit: int = 10, wait_s: float = 5.0) -> list[Delivery]:
        return list(await self._receive(agent, limit, duration_s(wait_s, "wait_s")))

    async def _puller(self, agent: str, limit: int) -> Puller:
        parts = await self._ready()
        check_agent(agent)
        if type(limit) is not int or limit < 1:
            raise MessageError(f"receive from {agent}: limit is a whole number, at least 1; got {limit!r}")
        return await parts.consumers.puller(agent)

    async def _receive(self, agent: str, limit: int, wait_s: float) -> list[EngineDelivery]:
        return await (await self._puller(agent, limit)).receive(limit, wait_s)

    async def consume(self, agent: str, *, prefetch: int = 1) -> AsyncIterator[Delivery]:
        taken: list[EngineDelivery] = []
        outage = Outage(log, "take messages", agent)
        try:
            await self._puller(agent, prefetch)
            while True:
                taken = await keep_trying(outage, lambda: self._receive(agent, prefetch, 60.0))
                for delivery in taken:
                    delivery.keep_for_later()
                while taken:
                    delivery = taken.pop(0)
                    if delivery.state == OPEN:
                        delivery.begin()
                        yield delivery
        finally:
            for delivery in taken:
                delivery.give_up()

    async def serve(
        self,
        agent: str,
        handle: Handle,
        *,
        concurrency: int = 1,
        timeout_s: float | None = None,
        retry: Callable[[str], Retry | None] | None = None,
        timeout_of: Callable[[str], float | None] | None = None,
        stop: Awaitable[object] | None = None,
        drain_s: float = 10.0,
    ) -> None:
        parts = await self._ready()
        check_agent(agent)
        if type(concurrency) is not int or concurrency < 1:
            raise SettingsError(f"serve {agent}: concurrency is a whole number, at least 1, not {concurrency!r}")
        drain_s = duration_s(drain_s, "drain_s")
        if timeout_s is not None:
            timeout_s = duration_s(timeout_s, "timeout_s")
        limit_s = self.settings.handler_timeout_s if timeout_s is None else timeout_s
        asked = as_future(stop)
        try:
            inbox = await join(asked, log, agent, partial(parts.consumers.inbox, agent))
            if inbox is not None:
                inbox.outcomes.retry_of = retry
                await parts.consumers.serve(Crew(inbox, handle, concurrency, limit_s, timeout_of), asked, drain_s)
        finally:
            let_go(asked, stop)

    # -- who takes what

    async def subscribe(
        self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = (), mode: Mode = "ordered"
    ) -> None:
        parts = await self._ready()
        check_subscription(agent, types, groups)
        if mode not in ("ordered", "competing"):
            raise MessageError(f"subscribe {agent}: mode is 'ordered' or 'competing', not {mode!r}")
        await parts.consumers.subscribe(agent, types, groups, mode)

    async def unsubscribe(self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = ()) -> None:
        parts = await self._ready()
        check_subscription(agent, types, groups)
        await parts.consumers.unsubscribe(agent, types, groups)

    async def subscription(self, agent: str) -> Subscription:
        parts = await self._ready()
        check_agent(agent)
        return await parts.subscriptions.describe(agent)

    async def agents(self) -> Sequence[str]:
        await self._ready()
        return sorted(spec.name for spec in await self.backend.queues() if not spec.name.startswith("~"))

    async def forget(self, agent: str) -> None:
        parts = await self._ready()
        check_agent(agent)
        await parts.consumers.forget(agent)

    # -- looking

    async def depth(self, agent: str) -> Depth:
        parts = await self._ready()
        check_agent(agent)
        await parts.bury_expired(agent)
        return await self.backend.depth(agent)

    async def dead_letters(
        self, agent: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        parts = await self._ready()
        looking.check_page(agent, limit, after)
        await parts.bury_expired(agent)
        return await looking.dead_letters(parts.core, agent, limit, after)

    async def replay(self, what: str | Sequence[str]) -> int:
        parts = await self._ready()
        queue, ids = letters_of(what)
        if parts.core.trail.on:
            await note_letters(self.backend, parts.core.trail, "replayed", queue, ids)
        return await self.backend.revive(queue, ids)

    async def purge_dead(self, what: str | Sequence[str] | None = None, *, older_than_s: float | None = None) -> int:
        parts = await self._ready()
        queue, ids = (None, None) if what is None else letters_of(what)
        if older_than_s is not None:
            older_than_s = duration_s(older_than_s, "older_than_s")
        if parts.core.trail.on:
            await note_letters(self.backend, parts.core.trail, "purged", queue, ids, older_than_s)
        return await self.backend.purge_dead(queue, ids, older_than_s)

    async def delayed(self, agent: str, *, limit: int = 100, after: str | None = None) -> list[Delayed]:
        parts = await self._ready()
        check_agent(agent)
        looking.check_page(agent, limit, after)
        return await looking.delayed(parts.core, agent, limit, after)

    async def cancel_delayed(self, ids: Collection[str], *, agent: str | None = None) -> int:
        parts = await self._ready()
        check_ids(ids, agent)
        return await looking.cancel_delayed(parts.core, ids, agent)

    async def schedule(
        self, name: str, when: str | float, message: Message, *, timezone: str = "UTC", catch_up: CatchUp = "one"
    ) -> None:
        parts = await self._ready()
        await parts.schedules.put(name, when, message, timezone, catch_up)

    async def unschedule(self, name: str) -> bool:
        parts = await self._ready()
        return await parts.schedules.remove(name)

    async def schedules(self) -> list[Schedule]:
        parts = await self._ready()
        return await parts.schedules.listed()

    async def cleanup(self, older_than_s: float) -> int:
        parts = await self._ready()
        return await looking.cleanup(parts.core, duration_s(older_than_s, "older_than_s"))

    async def explain(self, id: str) -> Explanation:
        parts = await self._ready()
        check_texts((id,), "the id of a message")
        await parts.bury_expired()
        return await explain(self.backend, parts.core.trail, id)

    def metrics(self) -> ProtocolMetrics:
        return ProtocolMetrics() if self._parts is None else msgspec.structs.replace(self._parts.metrics())

    async def health(self) -> Health:
        return await looking.health(self.settings.protocol, self.backend, self._ready)

    async def value(self, name: str) -> Value:
        await self._ready()
        check_texts((name,), "the name of a value")
        entry = await self.backend.get(_VALUE_PREFIX + name)
        return Value(entry.value, entry.version)

    async def set_value(self, name: str, data: bytes, version: int, *, ttl_s: float | None = None) -> Value | None:
        await self._ready()
        check_value(name, data, version, ttl_s)
        entry = await self.backend.put(_VALUE_PREFIX + name, data, version, ttl_s=ttl_s)
        return None if entry is None else Value(entry.value, entry.version)

    async def values(self, prefix: str) -> Mapping[str, Value]:
        await self._ready()
        check_texts((prefix,), "the name of a value")
        found = await self.backend.scan(_VALUE_PREFIX + prefix)
        return {key[len(_VALUE_PREFIX) :]: Value(entry.value, entry.version) for key, entry in found.items()}

    async def once(
        self, scope: str, name: str, fn: Callable[[], Awaitable[Any]], find: Callable[[], Awaitable[Any]] | None = None
    ) -> Any:
        parts = await self._ready()
        check_texts((scope, name), "the name of an effect")
        settings = self.settings
        effect = Once(
            self.backend,
            parts.core.tasks,
            f"{scope}/{name}",
            lease_s=settings.lease_s,
            keep_s=settings.idempotency_window_s * _ONCE_WINDOWS,
        )
        return await effect.result(fn, find)
