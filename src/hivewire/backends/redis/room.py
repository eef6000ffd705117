"""What this process knows of the queues that it sends to, and how it learns how much room they have."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial

import msgspec

from hivewire.backend import Record
from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keys import Names
from hivewire.backends.redis.link import Link, is_on_its_way
from hivewire.backends.redis.packing import hashed, level

_TRUST_S = 1.0
"""For how long a queue is known to have room, when it has much."""
_RENEW_S = 0.5
_MOST_TRUST = 5_000
_MUCH = 4
_MOST_KEYS = 10_000


class Known(msgspec.Struct):
    """What this process knows of a queue. `room`: how many records may be stored before the cap is asked for."""

    names: Names
    shards: int = 0
    competing: bool = False
    room: int = 0
    until: float = 0.0
    renew_at: float = 0.0
    """From then on, or with less room than `renew_below`, the store is asked anew while there is room left."""
    renew_below: int = 0
    is_mailbox: bool = False
    """Of replies: never refused for want of room (it counts none), and not made anew when it is gone."""
    is_asked_by_parts: bool = False
    """See `Rooms.renew_by_parts`."""
    by_key: dict[str, int] = {}
    """Shards of keys that were seen lately, where a key has one."""

    def shard(self, record: Record) -> int:
        """Those of a competing queue are levels of urgency."""
        if self.competing:
            return level(record) * self.shards // 10
        by_key, key = self.by_key, record.key
        shard = by_key.get(key)
        if shard is None:
            if len(by_key) >= _MOST_KEYS:
                by_key.clear()
            shard = by_key[key] = hashed(key) % self.shards
        return shard


def grant(known: Known, shards: int, cap: int, mode: bytes, held: int) -> None:
    """What the store has said of a queue."""
    if (known.shards, known.competing) != (shards, mode == b"competing"):
        known.shards, known.competing = shards, mode == b"competing"
        known.by_key.clear()
    now = time.monotonic()
    has_room = cap - held > _MOST_TRUST and not known.is_mailbox
    known.room = min((cap - held) // _MUCH, _MOST_TRUST) if has_room else 0
    known.renew_below = known.room // _MUCH
    known.renew_at, known.until = now + _RENEW_S, now + _TRUST_S


class Rooms:
    """Asks for more before what is known is used up: nobody waits for the answer."""

    def __init__(self, link: Link, shards: int) -> None:
        self._link = link
        self._shards = shards

    def renew(self, known: Known) -> None:
        known.renew_at, known.renew_below = math.inf, 0
        posted = self._link.post((scripts.run(scripts.ROOM, known.names.base),))
        posted.add_done_callback(partial(self._renewed, known, known.room))

    def _renewed(self, known: Known, room_before: int, answered: asyncio.Future[list[Reply]]) -> None:
        if answered.cancelled() or answered.exception() is not None:
            return
        (found,) = answered.result()
        if is_on_its_way(found):
            self.renew_by_parts(known)
        elif isinstance(found, list) and found:
            sent = room_before - known.room
            grant(known, *found)
            known.room -= sent
        else:
            known.room = 0  # there is no such queue any more: the next send declares it

    def renew_by_parts(self, known: Known) -> None:
        """While the queue's slot moves: key by key, as no script can. What is sent at the same time may exceed the
        cap."""
        if known.is_asked_by_parts:
            return
        known.is_asked_by_parts = True
        names, shards = known.names, known.shards or self._shards
        asked: list[Command] = [("HMGET", names.spec, "shards", "cap", "mode"), ("ZCARD", names.late)]
        asked += [("XLEN", names.stream(shard)) for shard in range(shards)]
        self._link.post(asked).add_done_callback(partial(self._have_parts, known, shards))

    def _have_parts(self, known: Known, shards: int, answered: asyncio.Future[list[Reply]]) -> None:
        known.is_asked_by_parts = False
        if answered.cancelled() or answered.exception() is not None:
            return
        if any(isinstance(answer, Exception) for answer in answered.result()):
            return
        (stored, cap, mode), *lengths = answered.result()
        if stored is not None and int(stored) == shards:
            grant(known, shards, int(cap), mode, sum(lengths))
        elif stored is not None:
            known.shards = int(stored)  # of which nothing goes plainly yet
