"""The engine: every promise of the protocol, once, over any backend."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Self

import msgspec

from hivewire.backend import Append, Backend, Depth, Duplicate, Mode, Record, Room
from hivewire.codec import ADDRESSES, check_agent, check_group, check_type, decode, encode, keep, split_address
from hivewire.codec.names import check_id, check_texts
from hivewire.delivery import Delivery
from hivewire.engine import looking
from hivewire.engine.claims import blob_store
from hivewire.engine.consumers import Consumers
from hivewire.engine.core import Core, handling
from hivewire.engine.crew import Crew
from hivewire.engine.delivery import OPEN, EngineDelivery
from hivewire.engine.explain import explain, note_letters
from hivewire.engine.groups import GROUP_QUEUE_PREFIX, JOIN, LEAVE, Groups
from hivewire.engine.middleware import Middleware, chain
from hivewire.engine.once import Once
from hivewire.engine.replies import REPLY_PREFIX, Replies
from hivewire.engine.schedules import Schedules
from hivewire.engine.sender import Sender
from hivewire.engine.subscriptions import ANY_TYPE, Subscriptions
from hivewire.engine.volatile import Volatile
from hivewire.errors import (
    BackendError,
    Closed,
    HivewireError,
    MessageError,
    QueueMissing,
    SettingsError,
    duration_s,
)
from hivewire.ids import derived_id
from hivewire.message import UNORDERED, Message
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

_HEALTH_S = 3.0
_STEP_S = 10.0
"""Of closing: what does not end by then is left behind."""
_MAINTENANCE_S = 1.0
_CLEANUP_EACH = 60
_SWEEP_EACH = 3_600
_MOST_BROADCAST_ID = 120
_VALUE_PREFIX = "value/"
_ONCE_WINDOWS = 24


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
        by_reference = backend.features.by_reference and self._blobs is None
        self._form: Callable[[Message, int], Any] = keep if by_reference else encode
        self._most_inline = sys.maxsize if self._blobs is None else settings.claim_check_bytes
        self._most_bytes, self._ttl_s = settings.max_message_size_bytes, settings.message_ttl_s
        self._outgoing = chain(tuple(outgoing)) if outgoing else None
        self._incoming = tuple(incoming)
        self._rng = rng or random.Random()
        self._open = False
        self._closed = False
        self._is_plain = False
        """Open, and a send is looked at by nobody on its way."""
        self._opening: asyncio.Lock | None = None
        self._closing: asyncio.Task[None] | None = None

    # -- life

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def _start(self) -> None:
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._closed:
                raise Closed("the protocol was closed; make a new one with hivewire.connect")
            await self._connect()

    async def _connect(self) -> None:
        if not self._open:
            await self.backend.open()
            try:
                await self._check_durability()
            except BaseException:
                await self.backend.close()
                raise
            if self._closed:
                await self.backend.close()
                raise Closed("the protocol was closed while it connected")
            core = self._core = Core(self.settings, self.backend, self._rng, self._incoming, self._blobs)
            self._subscriptions = Subscriptions(self.backend)
            self._sender = Sender(core)
            self._groups = Groups(core, self._subscriptions)
            self._volatile = Volatile(core, self._subscriptions)
            self._consumers = Consumers(core, self._subscriptions, self._groups, self._volatile)
            self._replies = Replies(core)
            self._schedules = Schedules(core, self.send)
            core.tasks.start(self._maintain(), "maintenance")
            core.tasks.start(self._schedules.run(), "schedules")
            self._open = True
            self._is_plain = self._outgoing is None and not core.trail.all

    async def _check_durability(self) -> None:
        durability = self.backend.features.durability
        if self.settings.require_durable and durability in ("volatile", "unknown"):
            found = (
                "does not tell whether it keeps messages" if durability == "unknown" else "keeps them in memory only"
            )
            raise SettingsError(
                f"require_durable is set, but this store {found}; use sqlite://, or a server that keeps what it"
                " is sent (Redis: --appendonly yes)"
            )

    async def close(self, drain_s: float = 10) -> None:
        if self._closing is None:
            self._closed, self._is_plain = True, False
            self._closing = asyncio.ensure_future(self._shut(drain_s))
        await asyncio.shield(self._closing)

    async def _shut(self, drain_s: float) -> None:
        if self._opening is not None:
            async with self._opening:  # who is connecting now finishes or fails first
                pass
        if not self._open:
            return
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(self._sender.drain, drain_s),
            partial(self._consumers.close, drain_s),
            self._groups.close,
            self._volatile.close,
            self._replies.close,
            self._core.trail.flush,
            self._core.tasks.close,
            self._close_blobs,
            self.backend.close,
        )
        for step in steps:
            try:
                has_own_bound = step in steps[:2]
                async with asyncio.timeout(None if has_own_bound else _STEP_S):
                    await step()
            except TimeoutError:
                log.warning("closing goes on without a part that does not end", extra={"after_s": _STEP_S})
            except (BackendError, OSError) as error:  # the store is away: leases run out by themselves
                log.warning("closing without the store", extra={"error": str(error)})
        self._open = False

    def abandon(self) -> None:
        """As if this process was killed: nothing is settled or given back, leases run out. For tests."""
        self._closed, self._is_plain = True, False
        self.backend.abandon()
        self._consumers.abandon()
        self._closing = asyncio.ensure_future(self._abandon())

    async def _close_blobs(self) -> None:
        if self._core.claims is not None:
            await self._core.claims.close()

    async def _abandon(self) -> None:
        await self._core.tasks.close()
        await self._close_blobs()
        await self.backend.close()
        self._open = False

    async def _maintain(self) -> None:
        """Now and then: expired messages to the dead letters, old traces forgotten."""
        for turn in count(1):
            await asyncio.sleep(_MAINTENANCE_S)
            try:
                await self._core.trail.flush()
                await self._bury_expired()
                if turn % _CLEANUP_EACH == 0:
                    await self.backend.cleanup(self.settings.dedup_window_s)
                    await self._core.trail.trim()
                    await looking.purge_old(self._core)
                if turn % _SWEEP_EACH == 0 and self._core.claims is not None:
                    await self._core.claims.sweep(self.backend)
            except (BackendError, OSError):
                continue  # `health` tells; the next round tries again

    async def _bury_expired(self) -> None:
        if self.backend.features.finds_expired:
            buried = await self.backend.bury_expired()
            self._core.metrics.expired += buried
            self._core.metrics.dead += buried

    # -- sending

    async def send(
        self, message: Message, *, delay_s: float = 0, idempotency_key: str | None = None, timeout_s: float = 30
    ) -> Receipt:
        if self._is_plain and not delay_s and idempotency_key is None and not self._sender.lines:
            queue, record = self._record(message)
            room = Room.CAP if handling.get() is None else Room.RESERVE
            backend = self.backend
            if len(record.body) > self._most_inline:
                await self._sender.append((Append(queue, (record,), room=room),), timeout_s)
            elif backend.append_now(queue, record, room):
                self._core.metrics.messages_sent += 1
                if backend.crowded:
                    await backend.give_way()
            else:
                await self._sender.one(queue, record, room, timeout_s)
            return Receipt(message.id)
        await self._ready()
        if self._outgoing is not None:
            receipt: Receipt = await self._outgoing(
                message, lambda changed: self._send(changed, delay_s, idempotency_key, timeout_s)
            )
            return receipt
        if delay_s:
            delay_s = duration_s(delay_s, "delay_s")
        return await self._send(message, delay_s, idempotency_key, timeout_s)

    async def _send(self, message: Message, delay_s: float, idempotency_key: str | None, timeout_s: float) -> Receipt:
        """With all that is rare."""
        queue, record = self._record(message)
        if idempotency_key is not None:
            check_id(idempotency_key, "an idempotency key")
        room = Room.RESERVE if handling.get() is not None else Room.CAP
        features = self.backend.features
        if delay_s > 0 and not features.delayed_append:
            record.due_at, delay_s = self.backend.now() + delay_s, 0.0
        if idempotency_key is not None and not features.store_dedup:
            record.dedup_key = idempotency_key
        entry = Append(queue, (record,), delay_s, idempotency_key, self.settings.idempotency_window_s, room)
        problems = await self._sender.append((entry,), timeout_s)
        if idempotency_key is None:
            return Receipt(message.id)
        problem = problems.get(0)
        if isinstance(problem, Duplicate):
            self._core.metrics.duplicates += 1
            return Receipt(problem.id, duplicate=True)
        return Receipt(message.id, duplicate=False if features.store_dedup else None)

    def _record(self, message: Message) -> tuple[str, Record]:
        """The queue and the stored form. Raises `MessageError` before anything is stored."""
        form = self._form(message, self._most_bytes)
        body, kept = (form, None) if type(form) is bytes else (b"", form)
        queue, instance = ADDRESSES.get(message.to) or split_address(message.to)
        key = instance or message.key
        if key is None:
            key = message.sender
        elif key == UNORDERED:
            key = message.id
        ttl_s = message.ttl_s
        if ttl_s is None:
            ttl_s = self._ttl_s
        return queue, Record(message.id, key, body, message.type, message.sender, ttl_s, message.priority, 0, kept)

    async def send_many(self, messages: Sequence[Message], *, timeout_s: float = 30) -> list[Receipt]:
        if not self._open or self._closed:
            await self._ready()
        if self._outgoing is not None:
            return [await self.send(message, timeout_s=timeout_s) for message in messages]
        by_queue: dict[str, list[Record]] = {}
        records: list[Record] = []
        last = None
        record_of = self._record
        for message in messages:
            queue, record = record_of(message)
            if queue != last:
                records = by_queue.setdefault(queue, [])
                last = queue
            records.append(record)
        if by_queue:
            room = Room.RESERVE if handling.get() is not None else Room.CAP
            entries = [Append(queue, records, room=room) for queue, records in by_queue.items()]
            await self._sender.append(entries, timeout_s)
        return [Receipt(message.id) for message in messages]

    async def request(self, message: Message, *, timeout_s: float = 30.0) -> Message:
        await self._ready()
        timeout_s = duration_s(timeout_s, "timeout_s")
        await self._replies.open()
        waiter = self._replies.expect(message.id)
        asked = message.replace(metadata={**message.metadata, "reply_to": self._replies.address})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            await self.send(asked, timeout_s=timeout_s)
        except BaseException:
            self._replies.forget(message.id)
            raise
        return await self._replies.wait(message.id, waiter, max(0.0, deadline - loop.time()))

    async def reply(self, message: Message, content: Any, *, type: str = "response") -> Receipt:
        await self._ready()
        to = message.metadata.get("reply_to") or message.sender
        place = handling.get()
        delivery = place.delivery if place is not None else None
        if delivery is None or delivery.message.id != message.id:
            delivery = self._consumers.handed_out(message.id)
        answer = Message(type=type, sender=message.to, to=to, content=content, in_reply_to=message.id)
        if delivery is not None:
            number = delivery.next_output(to, type)
            answer = answer.replace(id=derived_id(message.id, delivery.replay, to, type, number))
        return await self.deliver_reply(answer)

    async def deliver_reply(self, answer: Message) -> Receipt:
        """Store a reply; it is never refused for a full queue, and dropped when nobody waits any more."""
        if self._outgoing is not None:
            receipt: Receipt = await self._outgoing(answer, self._deliver_reply)
            return receipt
        return await self._deliver_reply(answer)

    async def _deliver_reply(self, answer: Message) -> Receipt:
        if answer.to.startswith(REPLY_PREFIX):
            if answer.to == self._replies.address and self._is_plain and not self._incoming:
                self._replies.arrived(self._as_received(answer))
                self._core.metrics.messages_sent += 1
                return Receipt(answer.id)
            queue = answer.to
            body = encode(answer.replace(to=split_address(answer.sender)[0]), self.settings.max_message_size_bytes)
            record = Record(answer.id, answer.id, body, answer.type, answer.sender)
        else:
            queue, record = self._record(answer)
        try:
            await self._sender.append((Append(queue, (record,), room=Room.ALWAYS),), 30.0)
        except QueueMissing:
            self._core.metrics.late_replies += 1
        return Receipt(answer.id)

    def _as_received(self, answer: Message) -> Message:
        """A reply to a request of this very object needs no store: it would be lost with the request. What the caller
        gets is a copy, as if it had been stored. Raises what storing raises."""
        sent = answer.replace(to=split_address(answer.sender)[0], in_reply_to=None)
        kept = keep(sent, self._most_bytes)
        received = decode(kept) if isinstance(kept, bytes) else kept.open()
        return received.replace(in_reply_to=answer.in_reply_to)

    async def broadcast(self, message: Message, group: str, *, durable: bool = True) -> Receipt:
        await self._ready()
        check_group(group)
        check_id(message.id, "the id of a message")
        if message.type in (JOIN, LEAVE) or len(message.id.encode()) > _MOST_BROADCAST_ID:
            raise MessageError(f"broadcast {message.id}: its type is reserved or its id is too long")
        sent = message.replace(to=group)
        if self._outgoing is not None:
            receipt: Receipt = await self._outgoing(sent, lambda changed: self._broadcast(changed, group, durable))
            return receipt
        return await self._broadcast(sent, group, durable)

    async def _broadcast(self, sent: Message, group: str, durable: bool) -> Receipt:
        if not durable:
            encode(sent, self.settings.max_message_size_bytes)
            await self._volatile.publish(group, sent)
            self._core.metrics.messages_sent += 1
            return Receipt(sent.id)
        await self._groups.ensure(group)
        _, record = self._record(sent)
        record.key = group
        room = Room.RESERVE if handling.get() is not None else Room.CAP
        await self._sender.append((Append(GROUP_QUEUE_PREFIX + group, (record,), room=room),), 30.0)
        return Receipt(sent.id)

    # -- receiving

    async def receive(self, agent: str, *, limit: int = 10, wait_s: float = 5.0) -> list[Delivery]:
        return list(await self._receive(agent, limit, duration_s(wait_s, "wait_s")))

    async def _receive(self, agent: str, limit: int, wait_s: float) -> list[EngineDelivery]:
        await self._ready()
        check_agent(agent)
        if type(limit) is not int or limit < 1:
            raise MessageError(f"receive from {agent}: limit is a whole number, at least 1; got {limit!r}")
        puller = await self._consumers.puller(agent)
        return await puller.receive(limit, wait_s)

    async def consume(self, agent: str, *, prefetch: int = 1) -> AsyncIterator[Delivery]:
        taken: list[EngineDelivery] = []
        try:
            while True:
                taken = await self._receive(agent, prefetch, 60.0)
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
        await self._ready()
        check_agent(agent)
        if concurrency < 1:
            raise SettingsError(f"serve {agent}: concurrency must be at least 1, not {concurrency}")
        inbox = await self._consumers.inbox(agent)
        inbox.outcomes.retry_of = retry
        limit_s = self.settings.handler_timeout_s if timeout_s is None else timeout_s
        crew = Crew(inbox, handle, concurrency, limit_s, timeout_of)
        await self._consumers.serve(crew, stop, drain_s)

    # -- who takes what

    async def subscribe(
        self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = (), mode: Mode = "ordered"
    ) -> None:
        await self._ready()
        _check_subscription(agent, types, groups)
        if mode not in ("ordered", "competing"):
            raise MessageError(f"subscribe {agent}: mode is 'ordered' or 'competing', not {mode!r}")
        await self._subscriptions.declare(self._core.spec(agent, mode))
        await self._subscriptions.add(agent, types, groups)
        for group in groups:
            await self._groups.announce(group, agent, joined=True)
        await self._consumers.joined(agent)

    async def unsubscribe(self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = ()) -> None:
        await self._ready()
        _check_subscription(agent, types, groups)
        everything = not types and not groups
        leaving = (await self._subscriptions.fresh(agent)).groups if everything else groups
        await self._subscriptions.remove(agent, types, leaving, everything=everything)
        for group in leaving:
            await self._groups.announce(group, agent, joined=False)

    async def subscription(self, agent: str) -> Subscription:
        await self._ready()
        check_agent(agent)
        return await self._subscriptions.describe(agent)

    async def agents(self) -> Sequence[str]:
        await self._ready()
        return sorted(spec.name for spec in await self.backend.queues() if not spec.name.startswith("~"))

    async def forget(self, agent: str) -> None:
        await self._ready()
        check_agent(agent)
        await self._consumers.leave(agent)
        for group in (await self._subscriptions.fresh(agent)).groups:
            await self._groups.announce(group, agent, joined=False)
        await self._subscriptions.forget(agent)
        await self.backend.drop_queue(agent)

    # -- looking

    async def depth(self, agent: str) -> Depth:
        await self._ready()
        check_agent(agent)
        await self._bury_expired()
        return await self.backend.depth(agent)

    async def dead_letters(
        self, agent: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        await self._ready()
        check_texts((agent or "", after or ""), "an agent or a place in the dead letters")
        await self._bury_expired()
        return await looking.dead_letters(self._core, agent, limit, after)

    async def replay(self, what: str | Sequence[str]) -> int:
        await self._ready()
        queue, ids = _letters(what)
        if self._core.trail.on:
            await note_letters(self.backend, self._core.trail, "replayed", queue, ids)
        return await self.backend.revive(queue, ids)

    async def purge_dead(self, what: str | Sequence[str] | None = None, *, older_than_s: float | None = None) -> int:
        await self._ready()
        queue, ids = (None, None) if what is None else _letters(what)
        if self._core.trail.on:
            await note_letters(self.backend, self._core.trail, "purged", queue, ids, older_than_s)
        return await self.backend.purge_dead(queue, ids, older_than_s)

    async def delayed(self, agent: str, *, limit: int = 100, after: str | None = None) -> list[Delayed]:
        await self._ready()
        check_agent(agent)
        check_texts((after or "",), "a place among the delayed messages")
        return await looking.delayed(self._core, agent, limit, after)

    async def cancel_delayed(self, ids: Sequence[str], *, agent: str | None = None) -> int:
        await self._ready()
        if isinstance(ids, str):
            raise MessageError(f"cancel {ids!r}: ids are a list, not one str")
        check_texts((*ids, agent or ""), "an id of a message")
        return await looking.cancel_delayed(self.backend, self._core.trail, ids, agent)

    async def schedule(
        self, name: str, when: str | float, message: Message, *, timezone: str = "UTC", catch_up: CatchUp = "one"
    ) -> None:
        await self._ready()
        await self._schedules.put(name, when, message, timezone, catch_up)

    async def unschedule(self, name: str) -> bool:
        await self._ready()
        return await self._schedules.remove(name)

    async def schedules(self) -> list[Schedule]:
        await self._ready()
        return await self._schedules.listed()

    async def cleanup(self, older_than_s: float) -> int:
        await self._ready()
        return await looking.cleanup(self._core, older_than_s)

    async def explain(self, id: str) -> Explanation:
        await self._ready()
        check_texts((id,), "the id of a message")
        await self._bury_expired()
        return await explain(self.backend, self._core.trail, id)

    def metrics(self) -> ProtocolMetrics:
        if not hasattr(self, "_core"):
            return ProtocolMetrics()
        self._core.metrics.in_flight = self._core.floor.running
        self._core.metrics.trail_dropped = self._core.trail.dropped
        self._core.metrics.lost = self.backend.lost
        self._core.metrics.paused = self.backend.paused()
        return msgspec.structs.replace(self._core.metrics)

    async def health(self) -> Health:
        began = time.perf_counter()
        durability = self.backend.features.durability
        name = self.settings.protocol
        try:
            async with asyncio.timeout(_HEALTH_S):
                await self._ready()
                found = await self.backend.health()
        except TimeoutError:
            return Health(
                ok=False, backend=name, durability=durability, detail=f"the store did not answer within {_HEALTH_S} s"
            )
        except (HivewireError, OSError) as error:
            return Health(ok=False, backend=name, durability=durability, detail=str(error))
        return Health(
            ok=found.ok,
            backend=name,
            durability=found.durability,
            detail=found.detail,
            warnings=tuple(found.warnings),
            latency_s=time.perf_counter() - began,
        )

    async def value(self, name: str) -> Value:
        await self._ready()
        check_texts((name,), "the name of a value")
        entry = await self.backend.get(_VALUE_PREFIX + name)
        return Value(entry.value, entry.version)

    async def set_value(self, name: str, data: bytes, version: int, *, ttl_s: float | None = None) -> Value | None:
        await self._ready()
        check_texts((name,), "the name of a value")
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
        await self._ready()
        check_texts((scope, name), "the name of an effect")
        settings = self.settings
        effect = Once(
            self.backend,
            f"{scope}/{name}",
            lease_s=settings.lease_s,
            keep_s=settings.idempotency_window_s * _ONCE_WINDOWS,
        )
        return await effect.result(fn, find)

    async def _ready(self) -> None:
        if self._closed:
            raise Closed("the protocol was closed; make a new one with hivewire.connect")
        if not self._open:
            await self._start()


def _letters(what: str | Sequence[str]) -> tuple[str | None, list[str] | None]:
    """Dead letters: those of an agent, or these ids."""
    queue, ids = (what, None) if isinstance(what, str) else (None, list(what))
    check_texts(ids or (queue or "",), "an agent or an id of a dead letter")
    return queue, ids


def _check_subscription(agent: str, types: Sequence[str], groups: Sequence[str]) -> None:
    check_agent(agent)
    if isinstance(types, str) or isinstance(groups, str):
        raise MessageError(f"subscribe {agent}: types and groups are lists of names, not one str")
    for type in types:
        if type != ANY_TYPE:
            check_type(type)
    for group in groups:
        check_group(group)
