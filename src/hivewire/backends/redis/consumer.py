"""One member's part of one queue: the shards that it owns, and what it has read of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hivewire.backend import Consumer, Fetched, Ownership, QueueSpec, Unfinished
from hivewire.backends.redis import membership, reading, scripts, settlement
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keeper import Seat, lease_clock
from hivewire.backends.redis.keys import INLET_BELL, Names
from hivewire.backends.redis.late import Late
from hivewire.backends.redis.link import good
from hivewire.backends.redis.packing import pack_state
from hivewire.backends.redis.reading import Held
from hivewire.backends.redis.tenure import Tenure
from hivewire.backends.redis.waiting import News, Stillness
from hivewire.backends.redis.watching import READ_EPOCH, Question, Watch
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)


_TURNS = 2
"""Of the loop, before a read is sent off to wait: so many a caller takes whose answer has come to send what is next."""


class RedisConsumer(Consumer):
    """Owns whole shards; reads them by cursors of its own, which consumes nothing."""

    def __init__(self, backend: RedisBackend, spec: QueueSpec, seat: Seat, owner: Ownership) -> None:
        self.backend = backend
        self.queue = spec.name
        self.names: Names = seat.names
        self.seat = seat
        self._news = News()
        self.tenure = Tenure(backend, spec.name, seat, owner, self._shards_changed)
        self.held = self.tenure.held
        self._hot: set[int] = set()
        """Shards in which there may be something to read."""
        self._filled: dict[int, Held] = {}
        """Those of which something is read and not handed out."""
        self._late = Late(backend, self.names)
        self.tenure.on_late = self._late.due_in
        self._stillness = Stillness()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._portion = reading.Portion()
        self._look_s = backend.settings.redis.block_timeout_s
        self._watch = Watch(backend, self.names, self._portion, self._arrived, self._look_again)
        self._watch_soon: asyncio.Handle | None = None
        self._is_watching = False
        """Reads wait in the server: one does, or who fetches next asks for it. Bells are not listened to."""
        self._hears_bell = False

    async def begin(self) -> None:
        """Returns when the first heartbeat is answered."""
        await self.backend.ears.subscribe(self.names.news, self._heard)
        await self.tenure.begin()

    def holds(self, fetched: Fetched) -> bool:
        return self.tenure.holds(fetched)

    def _heard(self, what: bytes | None) -> None:
        """The bell: what is new."""
        if what is None:
            self._look_again()
            self.tenure.poke()
            return
        for part in what.split(b","):
            if part == b"m":
                self.tenure.poke()
            elif part == b"*":
                self._late.due_in(0.0)
            elif part == INLET_BELL:
                self.backend.inlet_news()
            elif part.isdigit():
                shard = int(part)
                if shard in self.held and not self._is_watching:
                    self._hot.add(shard)
                    self._news.tell()

    def told(self, shard: int) -> bool:
        """A sender of this process has just sent a record to the shard. Whether it is this member's: then it is
        read in its turn, behind the record on the same connection."""
        held = self.held.get(shard)
        if held is None or held.is_leaving or self._closed or self.seat.until <= lease_clock():
            return False
        if self._is_watching and (not self._watch.is_asked or self._watch.covers(held)):
            self._watch.rung()
        else:
            self._hot.add(shard)
            self._news.tell()
        return True

    def rewind(self) -> None:
        """The connection was made anew, perhaps to a server that was started anew."""
        self._watch.move()
        for held in self.held.values():
            held.rewind()
        self._look_again()

    def _shards_changed(self) -> None:
        if self._watch.is_asked and not all(map(self._watch.covers, self._readable())):
            self._watch.move()
        self._look_again()

    def _look_again(self) -> None:
        self._hot.update(self.held)
        self._news.tell()

    # -- taking

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        if self._closed or limit <= 0 or lanes <= 0 or run <= 0:
            return ()
        time = self._loop.time
        until, look_s = time() + wait_s, self._look_s
        most_s = reading.LOOK_RARER * look_s
        with self.tenure:
            if not self.seat.takes:
                await self.tenure.awake()
            if wait_s <= 0:  # what was stored just now: its bell may still be on the way
                self._look_again()
            while True:
                self._news.is_there = False
                taken = await self._take(limit, lanes, run) if self._hot or self._filled else ()
                left = until - time()
                if taken or left <= 0 or self._closed:
                    return taken
                if not await self._news.wait(left if self._watches() else min(left, look_s)):
                    look_s = min(2 * look_s, most_s)
                    self._look_again()

    def _watches(self) -> bool:
        """Whether a read waits in the server for all that may come, or is about to."""
        if self._watch.is_asked:
            return True
        self._is_watching = self.backend.may_watch(self.queue) and self._watch.may_ask and self._may_read()
        if not self._is_watching:
            self._listen()
        elif self._watch_soon is None:
            self._watch_soon = self._loop.call_soon(self._ask_later, _TURNS)
        return self._is_watching

    def _listen(self) -> None:
        """To the bell. What came while nobody listened is looked for, now and when the server has confirmed it."""
        if not self._hears_bell:
            self._hears_bell = True
            self.backend.ears.listen(self.names.bell, self._heard)
            self._watch.rest()
            self._look_again()

    def _listen_no_more(self) -> None:
        """A bell would only wake us twice."""
        if self._hears_bell:
            self._hears_bell = False
            self.backend.ears.unsubscribe(self.names.bell, self._heard)

    def _readable(self) -> list[Held]:
        return [held for held in self.held.values() if not held.is_leaving]

    def _may_read(self) -> bool:
        """Whether there is something to ask of."""
        return any(not held.is_leaving for held in self.held.values())

    def _ask_later(self, turns: int) -> None:
        """What was taken is handled first, and what is sent because of it goes first."""
        if turns:
            self._watch_soon = self._loop.call_soon(self._ask_later, turns - 1)
            return
        self._watch_soon = None
        asked = self._readable()
        if self._closed or not asked or self._stillness.is_asked:
            self._is_watching = False
            self._look_again()
            return
        self._listen_no_more()
        self._watch.ask(asked)

    async def _take(self, limit: int, lanes: int, run: int) -> Sequence[Fetched]:
        stillness = self._stillness
        if stillness.is_asked:
            await stillness.free()
        stillness.reading = True
        try:
            filled = self._filled
            if filled:
                self._drop_stale()
            if not filled:
                await self._read(limit)
                if not filled:
                    return ()
            taken = reading.hand_out(filled.values(), limit, lanes, run)
            self._drop_stale()
            return taken
        finally:
            stillness.read()

    def _drop_stale(self) -> None:
        """What is handed out, given up or lost is not what was read and waits."""
        held = self.held
        for n in [n for n, one in self._filled.items() if not one.buffer or one.is_leaving or held.get(n) is not one]:
            del self._filled[n]

    async def _read(self, limit: int) -> None:
        hot, all_held = self._hot, self.held
        asked = [held for n in hot if (held := all_held.get(n)) is not None and not held.is_leaving]
        self._hot = set()
        if not asked:
            return
        most = min(max(16, limit // len(asked)), limit, self._portion.most(len(asked)))
        question = Question(self.names, asked, most)
        try:
            found, epoch = await self.backend.link.post((question.command(), READ_EPOCH))
            found = good(found, f"read {self.queue}")
            self.backend.set_epoch(good(epoch, "read the catalogue's epoch"))
        except BaseException:
            self._hot |= hot
            raise
        if found:
            self._keep(question, found)

    def _keep(self, question: Question, found: Sequence[Any]) -> None:
        for held, entries, is_all in question.new(self.held, found):
            self.backend.not_before(held.take(entries))
            self._filled[held.shard] = held
            self._portion.note(entries)
            if not is_all:  # else a bell that rang meanwhile still counts
                self._hot.add(held.shard)

    def _arrived(self, question: Question, found: Sequence[Any]) -> None:
        """What a read that waited in the server has found, perhaps nothing."""
        self._keep(question, found)
        self._news.tell()

    async def refetch(self, shard: int, at: Sequence[int | str]) -> Sequence[Fetched]:
        held = self.held.get(shard)
        if held is None or not at:
            return []
        stream = self.names.stream(shard)
        found: list[Fetched] = []
        for answer in await self.backend.link.post([("XRANGE", stream, str(id), str(id)) for id in at]):
            again = held.read(good(answer, f"read {self.queue}"))
            held.out.update([fetched.id for fetched in again])
            found += again
        return found

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Nothing is read while this lasts."""
        async with self._stillness.kept():
            self._watch.void()
            yield

    def unread(self, shard: int, id: bytes) -> Held | None:
        """The shard, if it is owned here and the engine has not had this record: it may be taken away. A copy
        that lies ready is forgotten."""
        held = self.held.get(shard)
        if held is None or held.is_leaving:
            return None
        return held if held.take_back(id) else None

    # -- outcomes

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        self.backend.check_usable()
        parts: dict[int, list[Fetched]] = {}
        for fetched in batch:
            parts.setdefault(fetched.shard, []).append(fetched)
        commands: list[Command] = []
        asked: list[list[Fetched]] = []
        refused: list[Fetched] = []
        for n, part in parts.items():
            held = self.tenure.holding(part[0])
            if held is None:
                refused += part
                continue
            # One that was settled in the meantime would leave its mark for ever.
            here = [fetched for fetched in part if reading.entry_id(fetched) in held.out]
            if here:
                arguments: list[str | bytes] = []
                for fetched in here:
                    arguments += [reading.entry_id(fetched), pack_state(fetched, running=True)]
                    held.stored.add(reading.entry_id(fetched))
                    held.marked.add(reading.entry_id(fetched))
                commands.append(scripts.run(scripts.START, self.names.base, self.seat.name, n, held.token, *arguments))
                asked.append(here)
        for answer, asked_of in zip(await self.backend.link.post(commands), asked, strict=True):
            if not good(answer, f"mark what runs of {self.queue}"):
                self._refused(asked_of)
                refused += asked_of
        return refused

    def _refused(self, part: Sequence[Fetched]) -> None:
        """The fence has refused what was asked of these: their shard is lost, if it was not given up meanwhile."""
        if self.tenure.holding(part[0]) is not None:
            self.tenure.lose({part[0].shard})
            self.tenure.poke()

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        self.backend.check_usable()
        now = self.backend.now()
        asked: dict[int, list[Fetched]] = {}
        arguments: list[str | bytes | int] = []
        told: list[tuple[Held, list[bytes]]] = []
        refused: list[Fetched] = []
        for finished, left in settlement.by_tenure(done, rest):
            everything = [*finished, *(outcome.fetched for outcome in left)] if left else finished
            held = self.tenure.holding(everything[0])
            if held is None:
                refused += everything
                continue
            arguments += settlement.arguments(held, finished, left, now)
            asked[held.shard] = everything
            if held.stored:
                told.append((held, [reading.entry_id(fetched) for fetched in settlement.gone(finished, left)]))
        if asked:
            most = self.backend.settings.dedup_window_ids
            command = scripts.run(scripts.SETTLE, self.names.base, self.seat.name, most, *arguments)
            (answer,) = await self.backend.link.post([command])
            for shard in good(answer, f"settle messages of {self.queue}"):
                self._refused(asked[shard])
                refused += asked[shard]
        for held, ids in told:
            held.stored.difference_update(ids)
        self.tenure.give_up_some()
        return refused

    def out(self) -> int:
        """Taken by this member, and not marked in the store."""
        return sum(held.unmarked() for held in self.held.values())

    def taken(self) -> list[tuple[int, bytes]]:
        """Shard and id of what runs here or is about to."""
        return [(shard, id) for shard, held in self.held.items() for id in held.out - held.paused]

    # -- ending

    def abandon(self) -> None:
        """As if the process was killed."""
        self._closed = True
        self.backend.keeper.remove(self.seat)

    async def stop(self) -> None:
        """End what runs here; say nothing to the server."""
        self._closed = True
        self._news.tell()
        self.backend.ears.unsubscribe(self.names.bell, self._heard)
        self.backend.ears.unsubscribe(self.names.news, self._heard)
        await self._watch.close()
        await self._late.stop()
        await self.tenure.stop()

    async def close(self) -> None:
        if self._closed:
            return
        await self.stop()
        self.backend.forget(self)
        self.held.clear()
        try:
            (answer,) = await self.backend.link.post([scripts.run(membership.LEAVE, self.names.base, self.seat.name)])
            good(answer, f"leave {self.queue}")
        except BackendError as error:
            log.warning("what was held could not be given back; it is free when the lease ends: %s", error)
