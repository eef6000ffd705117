"""One message as stores and rules see it: bytes with a key."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import msgspec

from hivewire.codec import Kept, decode
from hivewire.codec.names import split_address
from hivewire.message import UNORDERED, Message

VOLATILE_SHARD: Final = -1
"""The shard of a message that no store holds."""


class Record(msgspec.Struct, gc=False):
    """One message as the store sees it. `body` is the wire form and is never decoded by a store."""

    id: str
    key: str
    body: bytes
    type: str = ""
    sender: str = ""
    ttl_s: float | None = None
    priority: int = 5
    replay: int = 0
    """How often it was replayed from the dead letters. (id, replay) is one life of a message."""
    kept: Kept | None = None
    """The message itself, instead of `body`, in a store that never leaves the process."""
    due_at: float = 0.0
    """Not to be handled before, by the store's clock; only where the store cannot delay itself."""
    dedup_key: str | None = None
    """The idempotency key; only where the store cannot check it itself."""


def lane_of(record: Record, *, competing: bool) -> str:
    """What is handled one at a time: a key, or in competing mode each message by itself. Where the store does
    not check idempotency keys, the messages that have the same one must meet, so that one of them is handled."""
    return (record.dedup_key or record.id) if competing else record.key


def life(record: Record) -> Hashable:
    """What names one life of a message: the id, and the replay number when there is one."""
    return (record.id, record.replay) if record.replay else record.id


def names(record: Record) -> list[Hashable]:
    """All by which a second one is recognised: its life, and its idempotency key where the store does not
    check it."""
    found = [life(record)]
    if record.dedup_key is not None:
        found.append(("key", record.dedup_key))
    return found


def message_of(record: Record) -> Message:
    """The message; each call gives one of its own. Raises `Undecodable`."""
    kept = record.kept
    return decode(record.body) if kept is None else kept.open()


def received(body: bytes, ttl_s: float | None) -> Record:
    """A message that was not sent by ours, as it would be stored if it had been. Raises `Undecodable`."""
    message = decode(body)
    instance = split_address(message.to)[1] if message.to else None
    key = instance or message.key or message.sender
    return Record(
        message.id,
        message.id if key == UNORDERED else key,
        body,
        message.type,
        message.sender,
        ttl_s if message.ttl_s is None else message.ttl_s,
        message.priority,
    )


class Fetched(msgspec.Struct, gc=False):
    """A record that this member owns until it settles it or loses its lease."""

    shard: int
    at: int | str
    """Its position in the shard, rising. Opaque to the engine but for `int` when `per_record_ack` is off."""
    token: int
    record: Record
    stored_at: float
    starts: int = 0
    """Starts of the handler that the store knows of (this one included when `marked`)."""
    failures: int = 0
    """Attempts that count towards `max_attempts`."""
    crashes: int = 0
    """Crashes beside others, while this record ran."""
    died: int = 0
    """When the last owner died while this record had a running mark: how many records had one. Else 0."""
    suspect: bool = False
    """The last owner died while it held this record: mark it before its start."""
    marked: bool = False
    """A running mark is stored already, as asked by `fetch(starting=…)`."""
    seen: bool = False
    """The store has settled this (id, replay) before: a duplicate."""
