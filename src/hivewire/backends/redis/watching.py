"""A read that waits in the server: for consumers of few shards the record itself is the news, and no bell.

It consumes nothing, so that its answer may be dropped at any time: what it has read is read again from the cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.backends.redis.address import PACKED, Command, Reply, pack
from hivewire.backends.redis.keys import EPOCH, Names
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.opening import lean_link
from hivewire.backends.redis.reading import Held, Portion
from hivewire.errors import HivewireError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

READ_EPOCH: Final[Command] = (PACKED, EPOCH, pack(("HGET", EPOCH, "epoch")))

_DOUBT_S = 0.2
_AGAIN_S = 1.0


class Question:
    """What was asked of some shards, and how far each had been read then."""

    __slots__ = ("_cursors", "_rewinds", "asked", "count", "streams")

    def __init__(self, names: Names, asked: Sequence[Held], count: int) -> None:
        self.asked = asked
        self.streams = [names.stream(held.shard) for held in asked]
        self.now(count)

    def now(self, count: int) -> None:
        """Ask again, from where they have been read to by now."""
        self.count = count
        self._cursors = [held.cursor for held in self.asked]
        self._rewinds = [held.rewinds for held in self.asked]

    def command(self, *options: str | int) -> Command:
        return ("XREAD", "COUNT", self.count, *options, "STREAMS", *self.streams, *self._cursors)

    def new(self, held_now: Mapping[int, Held], found: Sequence[Any]) -> list[tuple[Held, Sequence[Any], bool]]:
        """What of the answer has not been read since: each shard, its entries, and whether these were all."""
        fresh = []
        for name, entries in found:
            place = self.streams.index(name.decode())
            held = self.asked[place]
            # What was asked for before a rewind lies behind a cursor that counts no more.
            if held_now.get(held.shard) is held and held.rewinds == self._rewinds[place]:
                left = entries if held.cursor == self._cursors[place] else held.behind(entries)
                if left:
                    fresh.append((held, left, len(entries) < self.count))
        return fresh


class Watch:
    """At most one such read of one consumer, on a connection of its own. Only while it is under way, and only of the
    shards that it was asked of, bells may be left unheard."""

    def __init__(
        self,
        backend: RedisBackend,
        names: Names,
        portion: Portion,
        arrived: Callable[[Question, Sequence[Any]], None],
        look_again: Callable[[], None],
    ) -> None:
        """`arrived` is told what was found, which may be nothing; `look_again`: it may not have seen all."""
        self._backend = backend
        self._names = names
        self._portion = portion
        self._arrived = arrived
        self._look_again = look_again
        self._loop = asyncio.get_running_loop()
        self._wait_s = wait_s = backend.settings.redis.block_timeout_s
        self._block = ("BLOCK", max(1, round(wait_s * 1000)))
        self._link: Link | None = None
        self._last: Question | None = None
        self._question: Question | None = None
        """What waits in the server, if its answer is wanted."""
        self._posted: asyncio.Future[list[Reply]] | None = None
        self._number = 0
        self._doubt: asyncio.TimerHandle | None = None
        self._doubted = 0
        self._not_before = 0.0
        self._is_moving = False

    @property
    def is_asked(self) -> bool:
        """A read waits in the server."""
        return self._posted is not None

    @property
    def may_ask(self) -> bool:
        """The connection has not failed just now."""
        return not self._not_before or self._loop.time() >= self._not_before

    def covers(self, held: Held) -> bool:
        """Whether what comes in this shard is seen without a bell."""
        question = self._question
        return question is not None and held in question.asked

    def ask(self, asked: Sequence[Held]) -> None:
        if self._link is None:
            self._link = lean_link(self._backend.settings.redis)
        question, most = self._last, self._portion.most(len(asked))
        if question is None or question.asked != asked:
            question = self._last = Question(self._names, asked, most)
        else:
            question.now(most)
        self._number += 1
        self._question = question
        commands = question.command(*self._block), READ_EPOCH
        self._posted = self._link.post_for(self._answered, commands, beyond_s=self._wait_s)
        self._link.hurry()

    def void(self) -> None:
        """What is under way is not wanted any more: something may be taken away from what it has read."""
        self._question = None

    def rung(self) -> None:
        """A record is on its way to a shard that is covered: it must come here soon, if this connection lives."""
        if self._doubt is None:
            self._doubted = self._number
            self._doubt = self._loop.call_later(_DOUBT_S, self._see)

    def _see(self) -> None:
        self._doubt = None
        if self._posted is not None and self._number == self._doubted:
            self._look_again()

    def _answered(self, posted: asyncio.Future[list[Reply]]) -> None:
        question, self._question, self._posted = self._question, None, None
        try:
            found, epoch = posted.result()
            found = good(found, "wait for messages") or ()
            self._backend.set_epoch(good(epoch, "read the catalogue's epoch"))
            self._not_before = 0.0
        except HivewireError:  # by bells, then: whoever cannot read at all is told so there
            question = None
            if not self._is_moving:
                self._not_before = self._loop.time() + _AGAIN_S
                self.move()  # it may have spoken with a server that is the master no more
            self._is_moving = False
        if self._link is None:
            return
        if question is None:
            self._look_again()
        else:
            self._arrived(question, found)

    def move(self) -> None:
        """Ask anew, on a new connection: something else is to be asked, or the server may be another one."""
        if self._link is not None:
            self._is_moving = self._posted is not None
            self._link.cut("something else is asked now")

    def rest(self) -> None:
        """Nothing will be asked for a while."""
        if self._link is not None and self._posted is None:
            self._link.cut("nothing is asked")

    async def close(self) -> None:
        link, self._link, self._question = self._link, None, None
        if self._doubt is not None:
            self._doubt.cancel()
        if link is not None:
            await link.close()
