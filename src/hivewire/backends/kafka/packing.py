"""Records as messages of Kafka, and back. The value is the JSON and nothing else, so that others can read it."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from hivewire.backend import DeadRecord, Letter
from hivewire.backends.kafka.names import key_bytes, text_of
from hivewire.codec import decode, split_address
from hivewire.errors import MessageError
from hivewire.record import Record

KafkaMessage: TypeAlias = Any
"""The client's own type says of each part that it may be missing; of a message without an error none is."""
OWN: Final = "hivewire"
"""The header with what the reference's headers do not say."""


class _Own(msgspec.Struct, array_like=True, gc=False):
    id: str
    ttl_s: float | None
    priority: int
    replay: int
    dedup_key: str | None


class _Letter(msgspec.Struct, array_like=True):
    queue: str
    id: str
    key: str
    type: str
    sender: str
    ttl_s: float | None
    priority: int
    replay: int
    reason: str
    error: str
    attempts: int
    first_at: float
    worker: str
    body: bytes


_write = msgspec.msgpack.Encoder().encode
_read_own = msgspec.msgpack.Decoder(_Own).decode
_read_letter = msgspec.msgpack.Decoder(_Letter).decode

Headers = list[tuple[str, str | bytes | None]]
_MOST_NAMED: Final = 1_000
_named: dict[tuple[str, str, str], Headers] = {}
"""Headers of those who spoke lately."""


def headers_of(queue: str, record: Record) -> Headers:
    """`type`, `from` and `to` as in the reference, and ours."""
    named = record.type, record.sender, queue
    first = _named.get(named)
    if first is None:
        if len(_named) >= _MOST_NAMED:
            _named.clear()
        first = _named[named] = [
            ("type", key_bytes(record.type)),
            ("from", key_bytes(record.sender)),
            ("to", queue),
        ]
    own = _write((record.id, record.ttl_s, record.priority, record.replay, record.dedup_key))
    return [*first, (OWN, own)]


def record_of(message: KafkaMessage) -> Record:
    """Of anybody's message. What is not a message becomes a record that cannot be decoded, with an id."""
    headers: Any = message.headers() or ()
    body: bytes = message.value() or b""
    if len(headers) == 4 and headers[3][0] == OWN:
        (_, type_), (_, sender), _, (_, packed) = headers
        key: bytes = message.key() or b""
        try:
            own = _read_own(packed)
            try:  # nearly always; what half a character takes is below
                texts = key.decode(), type_.decode(), sender.decode()
            except UnicodeDecodeError:
                texts = text_of(key), text_of(type_), text_of(sender)
            return Record(
                own.id,
                texts[0],
                body,
                texts[1],
                texts[2],
                own.ttl_s,
                own.priority,
                own.replay,
                None,
                0.0,
                own.dedup_key,
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # somebody else's header of this name
    return _of_a_stranger(message, body)


def _of_a_stranger(message: KafkaMessage, body: bytes) -> Record:
    """Its order is that of its partition: which of them a key has is the sender's own choice."""
    here = f"{message.partition()}"
    try:
        found = decode(body)
        instance = split_address(found.to)[1] if found.to else None
    except MessageError:
        place = f"kafka:{message.topic()}/{here}/{message.offset()}"
        return Record(place, f"\x00{here}/{place}", body)
    key = instance or found.key or found.sender
    return Record(
        found.id, f"\x00{here}/{key}", body, found.type, found.sender, ttl_s=found.ttl_s, priority=found.priority
    )


def stored_at(message: KafkaMessage) -> float:
    at_ms: int = message.timestamp()[1]
    return at_ms / 1000


def letter_key(queue: str, record: Record) -> bytes:
    return _write((queue, record.id, record.replay))


def pack_letter(queue: str, record: Record, letter: Letter) -> bytes:
    return _write(
        _Letter(
            queue,
            record.id,
            record.key,
            record.type,
            record.sender,
            record.ttl_s,
            record.priority,
            record.replay,
            letter.reason,
            letter.error,
            letter.attempts,
            letter.first_at,
            letter.worker,
            record.body,
        )
    )


def unpack_letter(cursor: str, message: KafkaMessage) -> DeadRecord:
    packed = _read_letter(message.value() or b"")
    record = Record(
        packed.id,
        packed.key,
        packed.body,
        packed.type,
        packed.sender,
        packed.ttl_s,
        packed.priority,
        packed.replay,
    )
    letter = Letter(
        reason=packed.reason,
        error=packed.error,
        attempts=packed.attempts,
        first_at=packed.first_at,
        worker=packed.worker,
    )
    return DeadRecord(cursor=cursor, queue=packed.queue, record=record, letter=letter, dead_at=stored_at(message))
