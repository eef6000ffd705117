"""A message kept in this process: checked like one that is written, without writing all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from hivewire.codec.names import ADDRESSES, SHORT, TYPES
from hivewire.codec.values import MAX_DEPTH, PLAIN, check_inside
from hivewire.codec.wire import check_fields, encode, not_json
from hivewire.message import Message

_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder().decode
_replace = msgspec.structs.replace

_USUAL: Final = 5
"""The priority that is compared by identity: 5.0 and True are none."""
_MOST_BITS: Final = 63
_NAMES: Final[dict[tuple[str, ...], int]] = {}
"""Names that were found good, and their size. Emptied when it is full."""
_FULL: Final = 10_000
_MOST_NAMES: Final = 32
_NEVER: Final = -(2**62)
"""A size that stays below zero, whatever is added."""


class Flat(msgspec.Struct, gc=False):
    """A message whose content and metadata nobody can change any more: copies of dicts of plain values. Each
    `open` gives a message of its own; what it shares with the sender's is immutable."""

    message: Message
    content: dict[str, Any]
    metadata: dict[str, Any]

    def open(self) -> Message:
        return _replace(self.message, content=self.content.copy(), metadata=self.metadata.copy())


class Written(msgspec.Struct, gc=False):
    """The same for other shapes: JSON."""

    message: Message
    content: bytes | None
    """None: nobody can change the message's own (a str, a number)."""
    metadata: bytes

    def open(self) -> Message:
        metadata = _read(self.metadata)
        if self.content is None:
            return _replace(self.message, metadata=metadata)
        return _replace(self.message, content=_read(self.content), metadata=metadata)


Kept = Flat | Written


def keep(message: Message, max_size_bytes: int) -> Kept | bytes:
    """What `encode` would make of the message, ready to be opened in this process. Raises what `encode`
    raises. The rarer shapes are written as bytes."""
    try:
        content, metadata, created_at, id = message.content, message.metadata, message.created_at, message.id
        if (
            type(content) is dict
            and type(metadata) is dict
            and type(id) is str
            and message.type in TYPES
            and message.sender in ADDRESSES
            and message.to in ADDRESSES
            and message.priority is _USUAL
            and message.key is None
            and message.ttl_s is None
            and message.in_reply_to is None
            and not message.extra
            and 0 < len(id) <= SHORT
            and id.isascii()
            and type(created_at) is datetime
            and created_at.tzinfo is UTC
        ) and 0 <= _flat_bytes(content, metadata) <= max_size_bytes:
            return Flat(message, content.copy(), metadata.copy())
        return _keep_rare(message, max_size_bytes)
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        raise not_json(message, error) from error


def _keep_rare(message: Message, max_size_bytes: int) -> Kept | bytes:
    """What is written and not kept is written for the checks of the serializer: it refuses lone surrogates and
    endless integers."""
    content, metadata, created_at = message.content, message.metadata, message.created_at
    kind = type(content)
    if (
        (kind is not dict and kind not in PLAIN)
        or message.extra
        or message.in_reply_to is not None
        or not message.id.isascii()
        or type(created_at) is not datetime
        or created_at.tzinfo is not UTC
    ):
        return encode(message, max_size_bytes)
    check_fields(message, max_size_bytes)
    if kind is dict:
        if 0 <= _flat_bytes(content, metadata) <= max_size_bytes:
            return Flat(message, content.copy(), metadata.copy())
        check_inside(content, max_size_bytes, MAX_DEPTH)
    check_inside(metadata, max_size_bytes, MAX_DEPTH)
    written, noted = _write(content), _write(metadata)
    if len(written) + len(noted) > max_size_bytes:
        return encode(message, max_size_bytes)  # says what is too large, if it is
    return Written(message, written if kind is dict else None, noted)


def _flat_bytes(content: dict[str, Any], metadata: dict[str, Any]) -> int:
    """A size in JSON that both are not above, when copies of them share nothing that can be changed and JSON
    can say all of it; far below 0 when that takes a closer look."""
    names = (*content, *metadata)
    size = _NAMES.get(names)
    if size is None:
        size = _bytes_of(names)
    letters = 0
    for value in (*content.values(), *metadata.values()):
        kind = type(value)
        if kind is str:
            if not value.isascii() and not _is_text(value):
                return _NEVER
            letters += len(value)
        elif kind is float:
            if value - value != 0.0:  # not so for NaN and the infinite ones
                return _NEVER
        elif kind is int:
            if value.bit_length() > _MOST_BITS:
                return _NEVER
        elif kind not in PLAIN:
            return _NEVER
    return size + 6 * letters


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
