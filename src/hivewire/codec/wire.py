"""The wire form of a message: one JSON object with the reference system's names, and a few of ours.

    {"id":…,"type":…,"from":…,"to":…,"in_reply_to":…,"content":…,"metadata":{…},"created_at":"RFC 3339",
     "key":…,"ttl_s":…,"priority":…,"content_encoding":"base64"}

What `encode` accepts, `decode` gives back equal, but: a tuple comes back as a list, bytes-like content as
bytes, `in_reply_to=""` as None, and `created_at` in UTC. What `decode` accepts, `encode` can write again.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Final

import msgspec

from hivewire.codec.names import (
    ADDRESSES,
    MAX_ID_BYTES,
    SHORT,
    TYPES,
    check_id,
    check_key,
    check_type,
    split_address,
)
from hivewire.codec.values import MAX_DEPTH, PLAIN, check_inside, check_json, shown
from hivewire.errors import MessageError, TooLarge, Undecodable
from hivewire.message import Message

_ENVELOPE_BYTES: Final = 64 * 1024
_MOST_TTL_S: Final = 2.0**53
_GO_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
_NEVER: Final[Any] = object()
"""A default that no value is: `omit_defaults` then always writes the field."""


class _Written(msgspec.Struct, omit_defaults=True, gc=False, rename={"sender": "from"}):
    id: str
    type: str
    sender: str
    to: str
    in_reply_to: str | None = None
    content: Any = _NEVER
    metadata: dict[str, Any] = _NEVER
    created_at: datetime = _NEVER
    key: str | None = None
    ttl_s: float | None = None
    priority: int = 5


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES)]


class _Read(msgspec.Struct, forbid_unknown_fields=True, gc=False, rename={"sender": "from"}):
    id: _Id
    type: str
    sender: str
    to: str = ""
    in_reply_to: str | None = None
    content: Any = None
    metadata: dict[str, Any] | None = None
    created_at: Annotated[datetime, msgspec.Meta(tz=True)] = _GO_ZERO_TIME
    key: str | None = None
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=_MOST_TTL_S)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5
    content_encoding: str | None = None


_KNOWN: Final = frozenset(field.encode_name for field in msgspec.structs.fields(_Read))
_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder(_Read).decode
_read_any = msgspec.json.Decoder().decode


def encode(message: Message, max_size_bytes: int) -> bytes:
    """The message as JSON in UTF-8.

    Raises `TooLarge` when the content has more than `max_size_bytes`: bytes are counted as they are, a
    str in UTF-8, all else as JSON; the whole message may have half as much again and 64 KiB. Raises
    `Undecodable` for what JSON can not say and `MessageError` for a bad field.
    """
    try:
        content, metadata = message.content, message.metadata
        if type(content) is not dict or type(metadata) is not dict:
            return _encode_rare(message, max_size_bytes)
        for key, value in content.items():  # most content is flat: see that without a call
            kind = type(value)
            if not (kind in PLAIN or (kind is float and isfinite(value))) or type(key) is not str:
                return _encode_rare(message, max_size_bytes)
        for key, value in metadata.items():
            if type(value) not in PLAIN or type(key) is not str:
                return _encode_rare(message, max_size_bytes)
        id, type_, sender, to = message.id, message.type, message.sender, message.to
        key, ttl_s, priority, created_at = message.key, message.ttl_s, message.priority, message.created_at
        if (
            not (
                type_ in TYPES
                and sender in ADDRESSES
                and to in ADDRESSES
                and type(id) is str
                and 0 < len(id) <= SHORT
                and type(priority) is int
                and 0 < priority < 11
                and type(created_at) is datetime
                and created_at.tzinfo is UTC
            )
            or message.extra
        ):
            return _encode_rare(message, max_size_bytes)
        in_reply_to = message.in_reply_to or None
        if not (key is None and ttl_s is None and in_reply_to is None):
            _check_rare(message)
        body = _write(_Written(id, type_, sender, to, in_reply_to, content, metadata, created_at, key, ttl_s, priority))
        if len(body) > max_size_bytes:
            _check_size(message, len(_write(content)), len(body), max_size_bytes)
        return body
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        raise not_json(message, error) from error


def _encode_rare(message: Message, max_size_bytes: int) -> bytes:
    """What is not flat, or new here in its type or its addresses."""
    content = message.content
    kind = type(content)
    if kind not in PLAIN:
        if isinstance(content, (bytes, bytearray, memoryview)):
            return _encode_bytes(message, content, max_size_bytes)
        check_json(content, max_size_bytes)
    body = _write_message(message, content, max_size_bytes)
    if len(body) > max_size_bytes:
        size = len(content.encode()) if isinstance(content, str) else len(_write(content))
        _check_size(message, size, len(body), max_size_bytes)
    return body


def check_fields(message: Message, max_size_bytes: int) -> bool:
    """Check all fields but content, times and extra. True: the metadata hold plain values only."""
    id, type_, sender, to = message.id, message.type, message.sender, message.to
    if type_ not in TYPES:
        check_type(type_)
    if sender not in ADDRESSES:
        split_address(sender)
    if to not in ADDRESSES and to != "":
        split_address(to)
    if type(id) is not str or not 0 < len(id) <= SHORT:
        check_id(id, "the id of a message")
    priority, metadata = message.priority, message.metadata
    if type(priority) is not int or not 0 < priority < 11:
        _check_priority(priority)
    if type(metadata) is not dict:
        raise MessageError(f"metadata of a message is a dict, not {type(metadata).__name__}")
    if not (message.key is None and message.ttl_s is None and message.in_reply_to is None):
        _check_rare(message)
    for name, value in metadata.items():
        if type(value) not in PLAIN or type(name) is not str:
            check_inside(metadata, max_size_bytes, MAX_DEPTH)
            return False
    return True


def _write_message(message: Message, content: Any, max_size_bytes: int) -> bytes:
    """Check all fields but the content, and write."""
    check_fields(message, max_size_bytes)
    created_at = message.created_at
    if type(created_at) is not datetime or created_at.tzinfo is not UTC:
        created_at = _in_utc(created_at)
    body = _write(
        _Written(
            message.id,
            message.type,
            message.sender,
            message.to,
            message.in_reply_to or None,
            content,
            message.metadata,
            created_at,
            message.key,
            message.ttl_s,
            message.priority,
        )
    )
    if not message.extra:
        return body
    if type(message.extra) is not dict:
        raise MessageError(f"extra of a message is a dict, not {type(message.extra).__name__}")
    check_inside(message.extra, max_size_bytes, MAX_DEPTH)
    if known := sorted(_KNOWN.intersection(message.extra)):
        raise MessageError(f"{known[0]!r} is a field of its own and can not be among the extra fields")
    return body[:-1] + b"," + _write(message.extra)[1:]


def _encode_bytes(message: Message, content: bytes | bytearray | memoryview, max_size_bytes: int) -> bytes:
    size = content.nbytes if isinstance(content, memoryview) else len(content)
    if size > max_size_bytes:  # before it is copied
        _check_size(message, size, size, max_size_bytes)
    if isinstance(content, memoryview):
        content = content.tobytes()  # one with gaps has no other way to base64
    text = b2a_base64(content, newline=False).decode("ascii")
    body = _write_message(message, text, max_size_bytes)[:-1] + b',"content_encoding":"base64"}'
    _check_size(message, size, len(body), max_size_bytes)
    return body


def _check_size(message: Message, content_bytes: int, body_bytes: int, max_size_bytes: int) -> None:
    if content_bytes > max_size_bytes:
        raise TooLarge(
            f"the content of message {message.id!r} to {message.to!r} has {content_bytes} bytes, more than "
            f"max_message_size_bytes = {max_size_bytes}: send it in parts, or send where it is kept"
        )
    most = max_size_bytes + max_size_bytes // 2 + _ENVELOPE_BYTES
    if body_bytes > most:
        raise TooLarge(
            f"message {message.id!r} to {message.to!r} has {body_bytes} bytes as JSON ({content_bytes} of content); "
            f"with max_message_size_bytes = {max_size_bytes} it may have {most}"
        )


def not_json(message: object, error: Exception) -> MessageError:
    if not isinstance(message, Message):
        return MessageError(f"a hivewire.Message can be sent, not {type(message).__name__}")
    for name in ("type", "sender", "to"):
        if not isinstance(getattr(message, name), str):
            return MessageError(f"the {name} of a message is a str, not {type(getattr(message, name)).__name__}")
    reason = "it is nested too deep, or holds itself" if isinstance(error, RecursionError) else str(error)
    return Undecodable(f"message {shown(message.id)} can not be written as JSON: {reason}")


def _check_rare(message: Message) -> None:
    if message.in_reply_to:
        check_id(message.in_reply_to, "in_reply_to")
    if message.key is not None:
        check_key(message.key)
    ttl_s: object = message.ttl_s
    if ttl_s is None:
        return
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)) or not 0 < ttl_s <= _MOST_TTL_S:
        raise MessageError(f"ttl_s is a number of seconds above 0 and at most 2 ** 53; got {shown(ttl_s)}")


def _check_priority(priority: object) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= 10:
        raise MessageError(f"the priority of a message is an int from 1 to 10; got {shown(priority)}")


def _in_utc(moment: object) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise MessageError(f"created_at is a datetime with a time zone; got {shown(moment)}")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise MessageError(f"created_at is not in the years 1 to 9999 in UTC: {moment!r}") from None


# The shortest bodies around content that is nested one level too deep, in lists and in objects alone; what is shorter
# need not be counted.
_ENVELOPE: Final = '{"id":"a","type":"t","from":"x","content":}'
_DEEP_BYTES: Final = len(_ENVELOPE) + 2 * (MAX_DEPTH + 1)
_DEEP_OBJECTS_BYTES: Final = len(_ENVELOPE) + len('{"":}') * MAX_DEPTH + len("{}")
_BRACKET: Final = ord("[")


_READING_FAILED: Final = (ValueError, TypeError, RecursionError, MemoryError, OverflowError, MessageError)


def decode(body: bytes) -> Message:
    """The message that these bytes are. Raises `Undecodable` for all that `encode` would not write.

    Fields that this version does not know are kept in `extra`. When a name comes twice, the last one
    counts. Times finer than a microsecond are rounded. A missing `created_at` is the year 1, as in Go.
    """
    try:
        read = _read(body)
        id, type_, sender, to = read.id, read.type, read.sender, read.to
        metadata, created_at = read.metadata, read.created_at
        if (  # as most are: names that are known, and of what need not be there nothing
            type_ in TYPES
            and sender in ADDRESSES
            and to in ADDRESSES
            and len(id) <= SHORT
            and read.key is None
            and read.in_reply_to is None
            and read.ttl_s is None
            and read.content_encoding is None
            and metadata is not None
            and created_at.tzinfo is UTC
            and (len(body) < _DEEP_BYTES or (len(body) < _DEEP_OBJECTS_BYTES and _BRACKET not in body))
        ):
            return Message(
                type=type_,
                sender=sender,
                to=to,
                content=read.content,
                id=id,
                metadata=metadata,
                created_at=created_at,
                priority=read.priority,
            )
        if read.content_encoding is not None:
            read.content = _from_base64(read.content_encoding, read.content)
        return _message(read, body)
    except _READING_FAILED:
        pass  # the slow way finds out whether it is a message with more fields, or why it is none
    try:
        return _decode_slowly(body)
    except Undecodable:
        raise
    except MessageError as error:
        raise Undecodable(f"not a message: {error}") from None
    except _READING_FAILED as error:
        raise Undecodable(f"not a message: {str(error) or type(error).__name__}") from None


def _message(read: _Read, body: bytes) -> Message:
    id, type_, sender, to = read.id, read.type, read.sender, read.to
    if type_ not in TYPES:
        check_type(type_)
    if sender not in ADDRESSES:
        split_address(sender)
    if to not in ADDRESSES and to:
        split_address(to)
    if len(id) > SHORT:
        check_id(id, "id")
    key, in_reply_to, created_at = read.key, read.in_reply_to, read.created_at
    if key is not None:
        check_key(key)
    if in_reply_to:
        check_id(in_reply_to, "in_reply_to")
    # Few brackets can not be deep. (`bytes.count` takes three times as long on a short body.)
    if len(body) >= _DEEP_BYTES and len(body) - len(body.replace(b"{", b"").replace(b"[", b"")) > MAX_DEPTH:
        check_inside((read.content, read.metadata), len(body), MAX_DEPTH + 1)
    return Message(
        type=type_,
        sender=sender,
        to=to,
        content=read.content,
        id=id,
        key=key,
        in_reply_to=in_reply_to or None,
        metadata=read.metadata or {},
        created_at=created_at if created_at.tzinfo is UTC else _in_utc(created_at),
        ttl_s=read.ttl_s,
        priority=read.priority,
    )


def _decode_slowly(body: bytes) -> Message:
    """Unknown fields, bytes, and the exact reason when it is no message."""
    fields = _read_any(body)
    if not isinstance(fields, dict):
        raise Undecodable(f"not a message: the JSON is a {type(fields).__name__}, not an object")
    extra = {name: fields.pop(name) for name in list(fields) if name not in _KNOWN}
    read = msgspec.convert(fields, _Read)
    if read.content_encoding is not None:
        read.content = _from_base64(read.content_encoding, read.content)
    if extra:
        check_json(extra, len(body))
    message = _message(read, body)
    return message.replace(extra=extra) if extra else message


def _from_base64(encoding: str, content: Any) -> bytes:
    if encoding != "base64" or not isinstance(content, str):
        raise Undecodable(f"not a message: content_encoding is {encoding[:40]!r}; only 'base64' and a str are known")
    try:
        return a2b_base64(content, strict_mode=True)
    except Base64Error as error:
        raise Undecodable(f"not a message: the content is not base64: {error}") from None
