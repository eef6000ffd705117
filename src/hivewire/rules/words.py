"""What members of a pool say of messages, and what comes of it (`rules/pool.py`).

The words are stored, and read by members of other versions: what is added stands at the end and has a default, and who
does not know it goes on without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

At = tuple[int, int]
"""A shard and a position in it."""


class Offer(msgspec.Struct, array_like=True, gc=False):
    """A message that a member would take. `life` and `key` name it to those that are the same message: numbers of
    64 bits; key 0: it has none. `starts`: so many there were before, as far as the pool cannot know."""

    shard: int
    offset: int
    life: int = 0
    key: int = 0
    starts: int = 0


class Kept(msgspec.Struct, array_like=True, gc=False):
    """The counters of a message that is not finished."""

    shard: int
    offset: int
    starts: int = 0
    failures: int = 0
    crashes: int = 0
    due_at: float = 0.0


class Take(msgspec.Struct, array_like=True, gc=False):
    """The first `most` of the offers that are free; of these the first `starting` are marked as running.
    `runs`: they are in hand there already, so none of them waits to be tried again any more."""

    most: int
    starting: int
    offers: Sequence[Offer]
    runs: bool = False


class Word(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What a member says at one time. Each word, an empty one too, says that it lives."""

    member: str
    lease_s: float = 0.0
    """Not 0: it joins, and may be silent for so long."""
    leaves: bool = False
    done: Sequence[At] = ()
    started: Sequence[Kept] = ()
    back: Sequence[Kept] = ()
    """Free again from `due_at` on."""
    take: Take | None = None
    gaps: Sequence[tuple[int, int, int]] = ()
    """Shard, first position and the one after the last: there is nothing to be read."""
    silent: tuple[str, int] | None = None
    """This member has said nothing since its word at that place in the log."""
    topic: str = ""
    """What the messages lie in, each time that it is made under another name: of one that is gone nothing counts."""
    gone: Sequence[tuple[int, int]] = ()
    """Shard and position: what is before it can never be read again, and need not be remembered. For pools that are
    told of few messages: those before it that nobody took are not finished by this."""


class Grant(msgspec.Struct, gc=False):
    """A message that a member was given, with what is known of it."""

    at: At
    starts: int
    failures: int
    crashes: int
    died: int
    suspect: bool
    marked: bool
    seen: bool


class Heard(msgspec.Struct, gc=False):
    """What came of one word."""

    is_member: bool = True
    refused: Sequence[At] = ()
    granted: Sequence[Grant] = ()
    freed: bool = False
    """Something may be taken that could not be before."""
    buried: str = ""
