"""What a store is given, what it hands out, and what it tells of it: plain data of the contract in `backend.py`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal

import msgspec

from hivewire.record import Fetched, Record

Durability = Literal["volatile", "unknown", "process", "disk"]
"""`unknown`: the store does not tell; taken for volatile."""
Mode = Literal["ordered", "competing"]


class Room(IntEnum):
    """How an append stands to the queue's cap."""

    CAP = 0
    """Refused when the queue is full."""
    RESERVE = 1
    """Sent inside a handler: may use a reserve above the cap (a tenth of it, at least 100)."""
    ALWAYS = 2
    """Replies, retries, control records: never refused."""


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a queue was declared; the first declaration wins. `mode` None: nobody decided yet."""

    name: str
    mode: Mode | None = None
    shards: int = 8
    cap: int = 1_000_000


class Append(msgspec.Struct, gc=False):
    """Records for one queue, stored in this order, each key's order kept."""

    queue: str
    records: Sequence[Record]
    delay_s: float = 0.0
    idempotency_key: str | None = None
    window_s: float = 3600.0
    room: Room = Room.CAP


class Duplicate(msgspec.Struct, frozen=True):
    """The idempotency key was used before; `id` is the first message's. Nothing was stored."""

    id: str


class Letter(msgspec.Struct, kw_only=True):
    """Why a record is a dead letter."""

    reason: str
    error: str
    attempts: int
    first_at: float
    worker: str


class Again(msgspec.Struct):
    """Keep it for another attempt, no sooner than `delay_s` from now. Its key waits for it.

    The counters are in `fetched`, already brought up to date by the engine.
    """

    fetched: Fetched
    delay_s: float


class Dead(msgspec.Struct):
    """Move it to the dead letters, in one step where the store can."""

    fetched: Fetched
    letter: Letter


class Back(msgspec.Struct):
    """Given back: its handler was not started (the counters in `fetched` say so) and its key is free."""

    fetched: Fetched


Unfinished = Again | Dead | Back


class Saved(msgspec.Struct, frozen=True):
    """What is stored of a shard beside its records. `state` is the engine's; the numbers are for `depth`."""

    watermark: int
    state: bytes
    finished: int = 0
    """Records above the watermark that are finished."""
    running: int = 0
    """Records that are marked as running."""
    due_at: Sequence[float] = ()
    """When those that wait for another attempt may be tried, by the store's clock."""


class Depth(msgspec.Struct, frozen=True, kw_only=True):
    """How much a queue holds. `ready` waits, `in_flight` is with a member, `scheduled` is not due yet. `lost`:
    were deleted by others before they were acknowledged, in all."""

    ready: int = 0
    in_flight: int = 0
    scheduled: int = 0
    dead: int = 0
    oldest_age_s: float = 0.0
    lost: int = 0


class DeadRecord(msgspec.Struct, kw_only=True):
    """One dead letter as it is stored. `cursor` is its place in the listing."""

    cursor: str
    queue: str
    record: Record
    letter: Letter
    dead_at: float


class Waiting(msgspec.Struct, kw_only=True):
    """One message that a queue holds, seen without taking it. `cursor` is its place in the listing."""

    cursor: str
    record: Record
    state: Literal["ready", "in_flight", "scheduled"]
    """`scheduled`: not due before `due_at`, for the first time or for another attempt."""
    stored_at: float
    due_at: float = 0.0
    starts: int = 0
    failures: int = 0


class BackendHealth(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    durability: Durability
    detail: str = ""
    warnings: Sequence[str] = ()


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Who consumes: a name for people, unique per process, and how long it may be silent."""

    name: str
    lease_s: float = 10.0


class Entry(msgspec.Struct, frozen=True):
    """One value of the catalogue. `version` 0 with empty value: there is none."""

    value: bytes
    version: int
