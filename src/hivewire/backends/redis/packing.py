"""Records and dead letters as the server holds them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from zlib import crc32

import msgspec

from hivewire.backend import DeadRecord, Fetched, Letter, Record, life


class Head(msgspec.Struct, array_like=True, frozen=True):
    """All of a record but its body."""

    id: str
    key: str
    type: str
    sender: str
    ttl_s: float | None
    priority: int
    replay: int


class _Dead(msgspec.Struct, array_like=True, frozen=True):
    head: Head
    body: bytes
    letter: tuple[str, str, int, float, str]


class _Settled(msgspec.Struct, array_like=True, frozen=True):
    """Lives that were settled together, and when."""

    at: float
    lives: Sequence[str | tuple[str, int]]


_encoder = msgspec.msgpack.Encoder()
decode_head = msgspec.msgpack.Decoder(tuple[str, str, str, str, float | None, int, int]).decode
"""The fields of a `Head`: a tuple is taken apart in less time than a struct."""
_dead = msgspec.msgpack.Decoder(_Dead)
_settled = msgspec.msgpack.Decoder(_Settled)


def pack_head(record: Record, replay: int | None = None) -> bytes:
    return _encoder.encode(
        (
            record.id,
            record.key,
            record.type,
            record.sender,
            record.ttl_s,
            record.priority,
            record.replay if replay is None else replay,
        )
    )


def unpack(head: bytes, body: bytes) -> Record:
    id, key, type_, sender, ttl_s, priority, replay = decode_head(head)
    return Record(id, key, body, type_, sender, ttl_s, priority, replay)


def _record(found: Head, body: bytes) -> Record:
    return Record(found.id, found.key, body, found.type, found.sender, found.ttl_s, found.priority, found.replay)


def hashed(text: str) -> int:
    """What a shard is chosen by."""
    return crc32(text.encode("utf-8", "surrogatepass"))


def level(record: Record) -> int:
    """Where a competing queue's shards are levels, in tenths: 0 is the most urgent."""
    return max(0, min(9, 10 - record.priority))


def life_of(record: Record) -> str:
    """One life of a message, as competing queues name it."""
    return f"{record.id}\0{record.replay}" if record.replay else record.id


def unpack_lives(packed: Sequence[bytes]) -> list[Hashable]:
    """What `life_of` has named, as the engine does."""
    found = [one.decode().partition("\0") for one in packed]
    return [(id, int(replay)) if replay else id for id, _, replay in found]


def ttl_ms(record: Record) -> int:
    """0: none."""
    return 0 if record.ttl_s is None else max(1, round(record.ttl_s * 1000))


def pack_dead(record: Record, letter: Letter) -> bytes:
    head = Head(
        record.id, record.key, record.type, record.sender, record.ttl_s, record.priority, record.replay
    )  # fmt: skip
    told = (letter.reason, letter.error, letter.attempts, letter.first_at, letter.worker)
    return _encoder.encode(_Dead(head, record.body, told))


def unpack_dead(queue: str, cursor: str, packed: bytes) -> DeadRecord:
    found = _dead.decode(packed)
    reason, error, attempts, first_at, worker = found.letter
    return DeadRecord(
        cursor=cursor,
        queue=queue,
        record=_record(found.head, found.body),
        letter=Letter(reason=reason, error=error, attempts=attempts, first_at=first_at, worker=worker),
        dead_at=int(cursor.partition("-")[0]) / 1e6,
    )


def pack_settled(now: float, records: Sequence[Record]) -> bytes:
    return _encoder.encode((now, [life(record) if record.replay else record.id for record in records]))


def unpack_settled(packed: Sequence[bytes], since: float) -> list[Hashable]:
    lives: list[Hashable] = []
    for chunk in packed:
        found = _settled.decode(chunk)
        if found.at >= since:
            lives.extend(found.lives)
    return lives


class State(msgspec.Struct, gc=False):
    """What the server knows of a record beside the record: counters, and whether its handler runs."""

    starts: int
    failures: int
    crashes: int
    died: int


def pack_state(fetched: Fetched, *, running: bool, due_ms: int = 0) -> str:
    return f"{fetched.starts},{fetched.failures},{fetched.crashes},{int(running)},{fetched.died},{due_ms}"


def unpack_state(packed: bytes) -> State:
    starts, failures, crashes, _, died, _ = packed.split(b",")
    return State(int(starts), int(failures), int(crashes), int(died))
