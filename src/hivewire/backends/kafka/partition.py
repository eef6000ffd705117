"""A partition that is owned here, and what of it goes to the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from hivewire.backend import Fetched
from hivewire.backends.kafka.metadata import FULL_BYTES
from hivewire.backends.kafka.tail import Place


class Taken(msgspec.Struct, frozen=True):
    """A partition that this member was given."""

    place: Place
    token: int
    watermark: int
    state: bytes
    committed: bool


class Held:
    """A partition that is owned here. `buffer`: what was read and the engine has not asked for."""

    __slots__ = (
        "buffer",
        "is_anew",
        "is_leaving",
        "is_ready",
        "next",
        "reached",
        "shard",
        "state_bytes",
        "token",
        "topic_id",
        "watermark",
    )

    def __init__(self, shard: int, token: int, watermark: int) -> None:
        self.shard = shard
        self.watermark = watermark
        """As it is committed."""
        self.next = watermark
        """What was read or is finished lies below it: by this token nothing of there comes again."""
        self.topic_id = ""
        """As it was taken over; another one of this name has other messages."""
        self.token = token
        self.buffer: deque[Fetched] = deque()
        self.state_bytes = 0
        self.reached = -1
        """All below this offset was read; -1: nothing was read yet."""
        self.is_ready = False
        """The engine has taken it over."""
        self.is_leaving = False
        self.is_anew = False
        """It is another log by now: what is known of it counts no more, until it is taken over by another token."""


def hand_out(partitions: Iterable[Held], limit: int, lanes: int, run: int) -> list[Fetched]:
    """Each partition's in its order: a log cannot be taken from its middle."""
    taken: list[Fetched] = []
    keys: dict[str, int] = {}
    anything_goes = run >= limit and lanes >= limit
    for held in partitions:
        buffer = held.buffer
        if held.state_bytes > FULL_BYTES:
            continue
        if anything_goes:
            left = limit - len(taken)
            if len(buffer) <= left:
                taken += buffer
                buffer.clear()
            else:
                taken += [buffer.popleft() for _ in range(left)]
            continue
        while buffer and len(taken) < limit:
            key = buffer[0].record.key
            so_far = keys.get(key, 0)
            if so_far >= run or (not so_far and len(keys) >= lanes):
                break
            keys[key] = so_far + 1
            taken.append(buffer.popleft())
    return taken
