"""What a commit carries beside the offset: text of at most 3,500 bytes."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Final

import msgspec

from hivewire.backend import Saved

FULL_BYTES: Final = 2_000
"""Of a partition's state, before base64: from here on it takes no new records until some below are finished."""


class _Packed(msgspec.Struct, array_like=True):
    version: int
    finished: int
    running: int
    due_ms: Sequence[int]
    state: bytes


class Committed(msgspec.Struct, frozen=True):
    watermark: int
    state: bytes
    finished: int = 0
    running: int = 0
    due_at: Sequence[float] = ()


_read = msgspec.msgpack.Decoder(_Packed).decode
_write = msgspec.msgpack.Encoder().encode


def pack(saved: Saved) -> str:
    due_ms = [int(at * 1000) for at in saved.due_at]
    return b64encode(_write(_Packed(1, saved.finished, saved.running, due_ms, saved.state))).decode()


def unpack(watermark: int, text: str) -> Committed:
    """A commit of somebody else's tool has no state: all above its offset is unfinished then."""
    try:
        packed = _read(b64decode(text, validate=True)) if text else None
    except (Base64Error, msgspec.DecodeError):
        packed = None
    if packed is None or packed.version != 1:
        return Committed(watermark, b"")
    due_at = [at / 1000 for at in packed.due_ms]
    return Committed(watermark, packed.state, packed.finished, packed.running, due_at)
