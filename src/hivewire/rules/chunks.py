"""The trail as it is stored: chunks of events, the oldest forgotten first."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hivewire.rules.trail import Event

_VERSION = 1


class _Chunk(msgspec.Struct, array_like=True):
    version: int
    worker: str
    events: Sequence[Event]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Chunk)


def pack(worker: str, events: Sequence[Event]) -> bytes:
    """Events of one process, for the store."""
    return _encoder.encode(_Chunk(_VERSION, worker, events))


def unpack(chunk: bytes, id: str) -> list[Event]:
    """The events of this message and of its copies for a group's members. Nothing of a chunk that cannot be
    read: another version may have written it."""
    try:
        found = _decoder.decode(chunk)
    except msgspec.DecodeError:
        return []
    if found.version != _VERSION:
        return []
    copies = id + "@"
    return [
        msgspec.structs.replace(event, worker=found.worker)
        for event in found.events
        if event.id == id or event.id.startswith(copies)
    ]


def beyond(sizes: Sequence[int], most: int) -> int:
    """How many of the oldest must go, so that the rest holds at most `most` bytes together.

    >>> beyond([4, 4, 4], 9)
    1
    """
    total, gone = sum(sizes), 0
    while total > most:
        total -= sizes[gone]
        gone += 1
    return gone
