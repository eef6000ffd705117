"""What a queue holds, seen without taking it. Of what another process has taken, only what is marked as running
is known to be in flight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from hivewire.backend import Waiting
from hivewire.backends.redis import scripts
from hivewire.backends.redis.keys import base
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.packing import unpack, unpack_state
from hivewire.backends.redis.reading import read


async def peek(
    link: Link, queue: str, out: Collection[bytes], limit: int, after: str | None, *, delayed_only: bool
) -> list[Waiting]:
    """`out`: ids of records that this process has taken, with their shard."""
    found: list[Waiting] = []
    if not delayed_only and not (after or "").startswith("s"):
        shard, id = 0, "-"
        if after:
            number, _, rest = after[1:].partition(":")
            shard, id = int(number), f"({rest}"
        shards = int(await link.call("HGET", f"{base(queue)}spec", "shards") or 0)
        while shard < shards and len(found) < limit:
            found += await _held(link, queue, shard, out, limit - len(found), id)
            shard, id = shard + 1, "-"
        after = None
    if len(found) < limit:
        found += await _delayed(link, queue, limit - len(found), after)
    return found


async def _held(link: Link, queue: str, shard: int, out: Collection[bytes], limit: int, least: str) -> list[Waiting]:
    entries = await link.call("XRANGE", f"{base(queue)}s{shard}", least, "+", "COUNT", limit)
    if not entries:
        return []
    states = await link.call("HMGET", f"{base(queue)}st{shard}", *[id for id, _ in entries])
    seconds, micros = await link.call("TIME")
    now = int(seconds) + int(micros) / 1e6
    return [
        _waiting(shard, id, fields, state, f"{shard}:".encode() + id in out, now)
        for (id, fields), state in zip(entries, states, strict=True)
    ]


def _waiting(shard: int, id: bytes, fields: Sequence[bytes], state: bytes | None, is_out: bool, now: float) -> Waiting:
    (entry,) = read([(id, fields)], shard, 0)
    found = Waiting(
        cursor=f"r{shard}:{id.decode()}",
        record=entry.record,
        state="in_flight" if is_out else "ready",
        stored_at=entry.stored_at,
    )
    if state is not None:
        counted = unpack_state(state)
        found.starts, found.failures = counted.starts, counted.failures
        *_, running, _, due_ms = state.split(b",")
        if running == b"1":
            found.state = "in_flight"
        elif int(due_ms) / 1000 > now:
            found.state, found.due_at = "scheduled", int(due_ms) / 1000
    return found


async def _delayed(link: Link, queue: str, limit: int, after: str | None) -> list[Waiting]:
    due, _, number = after[1:].partition("-") if after else ("-inf", "", "")
    (answer,) = await link.post([scripts.run(scripts.LATE, base(queue), due, number, limit)])
    rows: list[Any] = good(answer, f"list the delayed messages of {queue}")
    return [
        Waiting(
            cursor=f"s{due_ms.decode()}-{place.decode()}",
            record=unpack(head, body),
            state="scheduled",
            stored_at=int(stored_ms) / 1000,
            due_at=float(due_ms) / 1000,
        )
        for place, due_ms, stored_ms, head, body in rows
    ]


async def withdraw(link: Link, queue: str, cursors: Sequence[str]) -> list[str]:
    places = [cursor[1:].rpartition("-")[::2] for cursor in cursors]
    arguments = [part for place in places for part in place]
    (answer,) = await link.post([scripts.run(scripts.WITHDRAW, base(queue), *arguments)])
    gone = good(answer, f"cancel delayed messages of {queue}")
    return [cursors[place - 1] for place in gone]
