"""Every way out: what is sent, answered and broadcast becomes records, after middleware has seen it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from hivewire.backend import Append, Duplicate, Record, Room
from hivewire.codec import ADDRESSES, check_group, decode, encode, keep, split_address
from hivewire.codec.names import check_id
from hivewire.engine.consumers import Consumers
from hivewire.engine.core import Core, handling
from hivewire.engine.groups import GROUP_QUEUE_PREFIX, JOIN, LEAVE
from hivewire.engine.middleware import Middleware, chain
from hivewire.engine.replies import Replies
from hivewire.engine.sender import Sender
from hivewire.errors import MessageError, QueueMissing
from hivewire.ids import derived_id, new_id
from hivewire.message import REPLY_PREFIX, UNORDERED, Message
from hivewire.protocol import Receipt

_MOST_BROADCAST_ID: Final = 120
_REPLY_S: Final = 30.0


class Outgoing:
    """Of one protocol. Raises `MessageError` before anything is stored.

    `most_inline`: of the bodies that are stored as they are, without looking for a blob store.
    """

    def __init__(
        self, core: Core, sender: Sender, replies: Replies, consumers: Consumers, middleware: Sequence[Middleware]
    ) -> None:
        settings = core.settings
        self._core = core
        self.sender = sender
        self._replies = replies
        self._consumers = consumers
        self.metrics = core.metrics
        by_reference = core.features.by_reference and core.claims is None
        self._form: Callable[[Message, int], Any] = keep if by_reference else encode
        self._most_bytes, self._ttl_s = settings.max_message_size_bytes, settings.message_ttl_s
        self.most_inline = sys.maxsize if core.claims is None else settings.claim_check_bytes
        self._middleware = chain(tuple(middleware)) if middleware else None
        self.is_plain = self._middleware is None and not core.trail.all
        """What is sent is looked at by nobody on its way."""

    def record(self, message: Message) -> tuple[str, Record]:
        """The queue and the stored form."""
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

    # -- messages

    async def send(self, message: Message, delay_s: float, idempotency_key: str | None, timeout_s: float) -> Receipt:
        if self._middleware is None:
            return await self._send(message, delay_s, idempotency_key, timeout_s)
        receipt: Receipt = await self._middleware(
            message, lambda changed: self._send(changed, delay_s, idempotency_key, timeout_s)
        )
        return receipt

    async def _send(self, message: Message, delay_s: float, idempotency_key: str | None, timeout_s: float) -> Receipt:
        queue, record = self.record(message)
        if idempotency_key is not None:
            check_id(idempotency_key, "an idempotency key")
        features, settings = self._core.features, self._core.settings
        if delay_s > 0 and not features.delayed_append:
            record.due_at, delay_s = self._core.backend.now() + delay_s, 0.0
        if idempotency_key is not None and not features.store_dedup:
            record.dedup_key = idempotency_key
        entry = Append(queue, (record,), delay_s, idempotency_key, settings.idempotency_window_s, _room())
        problems = await self.sender.append((entry,), timeout_s)
        if idempotency_key is None:
            return Receipt(message.id)
        problem = problems.get(0)
        if isinstance(problem, Duplicate):
            self.metrics.duplicates += 1
            return Receipt(problem.id, duplicate=True)
        return Receipt(message.id, duplicate=False if features.store_dedup else None)

    async def send_many(self, messages: Sequence[Message], timeout_s: float) -> list[Receipt]:
        if not isinstance(messages, list | tuple):
            messages = _listed(messages)
        if self._middleware is not None:
            return [await self.send(message, 0.0, None, timeout_s) for message in messages]
        by_queue: dict[str, list[Record]] = {}
        records: list[Record] = []
        last = None
        record_of = self.record
        for message in messages:
            queue, record = record_of(message)
            if queue != last:
                records = by_queue.setdefault(queue, [])
                last = queue
            records.append(record)
        if by_queue:
            room = _room()
            entries = [Append(queue, records, room=room) for queue, records in by_queue.items()]
            await self.sender.append(entries, timeout_s)
        return [Receipt(message.id) for message in messages]

    # -- replies

    async def reply(self, message: Message, content: Any, type: str) -> Receipt:
        to = message.metadata.get("reply_to") or message.sender
        place = handling.get()
        delivery = place.delivery if place is not None else None
        if delivery is None or delivery.message.id != message.id:
            delivery = self._consumers.handed_out(message.id)
        if delivery is None:
            id = new_id()
        else:
            id = derived_id(message.id, delivery.replay, to, type, delivery.next_output(to, type))
        return await self.deliver_reply(
            Message(id=id, type=type, sender=message.to, to=to, content=content, in_reply_to=message.id)
        )

    async def deliver_reply(self, answer: Message) -> Receipt:
        if self._middleware is None:
            return await self._deliver_reply(answer)
        receipt: Receipt = await self._middleware(answer, self._deliver_reply)
        return receipt

    async def _deliver_reply(self, answer: Message) -> Receipt:
        if answer.to.startswith(REPLY_PREFIX):
            if answer.to == self._replies.address and self.is_plain and self._core.incoming is None:
                self._replies.arrived(self._as_received(answer))
                self.metrics.messages_sent += 1
                return Receipt(answer.id)
            queue = answer.to
            body = encode(answer.replace(to=split_address(answer.sender)[0]), self._most_bytes)
            record = Record(answer.id, answer.id, body, answer.type, answer.sender)
        else:
            queue, record = self.record(answer)
        try:
            if self.is_plain and len(record.body) <= self.most_inline:
                await self.sender.one(queue, record, Room.ALWAYS, _REPLY_S)
            else:
                await self.sender.append((Append(queue, (record,), room=Room.ALWAYS),), _REPLY_S)
        except QueueMissing:
            self.metrics.late_replies += 1
        return Receipt(answer.id)

    def _as_received(self, answer: Message) -> Message:
        """A reply to a request of this very object needs no store: it would be lost with the request. What the caller
        gets is a copy, as if it had been stored. Raises what storing raises."""
        sent = answer.replace(to=split_address(answer.sender)[0], in_reply_to=None)
        kept = keep(sent, self._most_bytes)
        received = decode(kept) if isinstance(kept, bytes) else kept.open()
        return received.replace(in_reply_to=answer.in_reply_to)

    # -- broadcast

    async def broadcast(self, message: Message, group: str, *, durable: bool) -> Receipt:
        check_group(group)
        check_id(message.id, "the id of a message")
        if message.type in (JOIN, LEAVE) or len(message.id.encode()) > _MOST_BROADCAST_ID:
            raise MessageError(f"broadcast {message.id}: its type is reserved or its id is too long")
        sent = message.replace(to=group)
        if self._middleware is None:
            return await self._broadcast(sent, group, durable=durable)
        receipt: Receipt = await self._middleware(
            sent, lambda changed: self._broadcast(changed, group, durable=durable)
        )
        return receipt

    async def _broadcast(self, sent: Message, group: str, *, durable: bool) -> Receipt:
        if not durable:
            encode(sent, self._most_bytes)
            await self._consumers.volatile.publish(group, sent)
            self.metrics.messages_sent += 1
            return Receipt(sent.id)
        await self._consumers.groups.ensure(group)
        _, record = self.record(sent)
        record.key = group
        await self.sender.append((Append(GROUP_QUEUE_PREFIX + group, (record,), room=_room()),), 30.0)
        return Receipt(sent.id)


def _listed(messages: Iterable[Message]) -> list[Message]:
    """A generator can be gone through once only."""
    if isinstance(messages, Message) or not isinstance(messages, Iterable):
        raise MessageError(f"send_many takes a list of messages, not {type(messages).__name__}")
    return list(messages)


def _room() -> Room:
    """Inside a handler there is a reserve."""
    return Room.CAP if handling.get() is None else Room.RESERVE
