"""A message kept in this process: checked like one that is written, without writing all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite
from typing import Any

import msgspec

from hivewire.codec.values import MAX_DEPTH, PLAIN, check_inside
from hivewire.codec.wire import check_fields, encode, not_json
from hivewire.message import Message

_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder().decode
_replace = msgspec.structs.replace


class Kept(msgspec.Struct, gc=False):
    """A message whose content and metadata nobody can change any more. Each `open` gives a message of its
    own; what it shares with the sender's is immutable."""

    message: Message
    content: bytes | None
    """JSON; None: the content cannot be changed by anybody (a str, a number)."""
    metadata: dict[str, Any] | bytes
    """A copy when all values are plain, else JSON."""

    def open(self) -> Message:
        metadata, content = self.metadata, self.content
        return _replace(
            self.message,
            content=self.message.content if content is None else _read(content),
            metadata=metadata.copy() if isinstance(metadata, dict) else _read(metadata),
        )


def keep(message: Message, max_size_bytes: int) -> Kept | bytes:
    """What `encode` would make of the message, ready to be opened in this process. Raises what `encode`
    raises. The rarer shapes are written as bytes."""
    try:
        content = message.content
        kind = type(content)
        created_at = message.created_at
        if (
            (kind is not dict and kind not in PLAIN)
            or message.extra
            or not message.id.isascii()
            or message.key is not None
            or message.in_reply_to is not None
            or type(created_at) is not datetime
            or created_at.tzinfo is not UTC
        ):
            return encode(message, max_size_bytes)
        # What is written and not kept is written for the checks of the serializer.
        is_flat = check_fields(message, max_size_bytes)
        if kind is dict:
            for name, value in content.items():
                kind = type(value)
                if (kind not in PLAIN and not (kind is float and isfinite(value))) or type(name) is not str:
                    check_inside(content, max_size_bytes, MAX_DEPTH)
                    break
        written = _write(content)  # refuses lone surrogates and endless integers
        metadata = message.metadata
        if len(written) + (len(_write(metadata)) if metadata else 0) > max_size_bytes:
            return encode(message, max_size_bytes)  # says what is too large, if it is
        return Kept(
            message,
            written if type(content) is dict else None,
            metadata.copy() if is_flat else _write(metadata),
        )
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        raise not_json(message, error) from error
