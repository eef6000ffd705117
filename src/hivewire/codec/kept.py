"""A message kept in this process: checked like one that is written, without writing all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from sys import float_info
from typing import Any, Final

import msgspec

from hivewire.codec.names import ADDRESSES, SHORT, TYPES
from hivewire.codec.values import MAX_DEPTH, PLAIN, check_inside
from hivewire.codec.wire import check_fields, encode, not_json
from hivewire.message import Message

_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder().decode
_replace = msgspec.structs.replace

_MOST_INT: Final = 2**62
_MOST_FLOAT: Final = float_info.max
_NAMES: Final[dict[tuple[str, ...], int]] = {}
"""Names that were found good, and their size. Emptied when it is full."""
_FULL: Final = 10_000
_MOST_NAMES: Final = 32
_NEVER: Final = -(2**62)
"""A size that stays below zero, whatever is added."""


class Kept(msgspec.Struct, gc=False):
    """A message whose content and metadata nobody can change any more. Each `open` gives a message of its
    own; what it shares with the sender's is immutable."""

    message: Message
    content: Any
    """A copy, when it is a dict of plain values; bytes: JSON; else what nobody can change (a str, a number)."""
    metadata: dict[str, Any] | bytes
    """A copy when all values are plain, else JSON."""

    def open(self) -> Message:
        content, metadata = self.content, self.metadata
        kind = type(content)
        if kind is dict:
            content = content.copy()
        elif kind is bytes:
            content = _read(content)
        return _replace(
            self.message,
            content=content,
            metadata=metadata.copy() if isinstance(metadata, dict) else _read(metadata),
        )


def keep(message: Message, max_size_bytes: int) -> Kept | bytes:
    """What `encode` would make of the message, ready to be opened in this process. Raises what `encode`
    raises. The rarer shapes are written as bytes."""
    try:
        content, metadata, created_at = message.content, message.metadata, message.created_at
        if (
            message.extra
            or message.in_reply_to is not None
            or type(created_at) is not datetime
            or created_at.tzinfo is not UTC
        ):
            return encode(message, max_size_bytes)
        id, priority = message.id, message.priority
        if not (
            message.type in TYPES
            and message.sender in ADDRESSES
            and message.to in ADDRESSES
            and type(id) is str
            and 0 < len(id) <= SHORT
            and id.isascii()
            and type(priority) is int
            and 0 < priority < 11
            and message.key is None
            and message.ttl_s is None
            and type(metadata) is dict
        ):
            check_fields(message, max_size_bytes)
            if not id.isascii():
                return encode(message, max_size_bytes)
        noted = _flat_bytes(metadata) if metadata else 0
        size = _flat_bytes(content) if type(content) is dict else -1
        if noted >= 0 <= size and noted + size <= max_size_bytes:
            return Kept(message, content.copy(), metadata.copy())
        return _keep_written(message, max_size_bytes)
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        raise not_json(message, error) from error


def _flat_bytes(values: dict[str, Any]) -> int:
    """A size in JSON that these are not above, when a copy of them shares nothing that can be changed and JSON
    can say all of it; -1 when that takes a closer look."""
    names = tuple(values)
    size = _NAMES.get(names)
    if size is None:
        size = _bytes_of(names)
    for value in values.values():
        kind = type(value)
        if kind is str:
            if not value.isascii() and not _is_text(value):
                return -1
            size += 6 * len(value)
        elif kind is float:
            if not -_MOST_FLOAT <= value <= _MOST_FLOAT:
                return -1
        elif kind is int:
            if not -_MOST_INT < value < _MOST_INT:
                return -1
        elif kind not in PLAIN:
            return -1
    return size


def _bytes_of(names: tuple[str, ...]) -> int:
    """What good names take in JSON beside their values, which may be numbers. Remembered: senders use the same
    names again and again."""
    if len(names) > _MOST_NAMES:
        return _NEVER
    for name in names:
        if type(name) is not str or len(name) > SHORT or not _is_text(name):
            return _NEVER
    if len(_NAMES) >= _FULL:
        _NAMES.clear()
    size = _NAMES[names] = sum(6 * len(name) + 48 for name in names)
    return size


def _is_text(value: str) -> bool:
    """Whether there is no lone surrogate in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _keep_written(message: Message, max_size_bytes: int) -> Kept | bytes:
    """What is written and not kept is written for the checks of the serializer: it refuses lone surrogates and
    endless integers."""
    content, metadata = message.content, message.metadata
    if type(content) is dict:
        check_inside(content, max_size_bytes, MAX_DEPTH)
    elif type(content) not in PLAIN:
        return encode(message, max_size_bytes)
    is_plain = _flat_bytes(metadata) >= 0
    if not is_plain:
        check_inside(metadata, max_size_bytes, MAX_DEPTH)
    written, noted = _write(content), _write(metadata)
    if len(written) + len(noted) > max_size_bytes:
        return encode(message, max_size_bytes)  # says what is too large, if it is
    return Kept(message, written if type(content) is dict else content, metadata.copy() if is_plain else noted)
