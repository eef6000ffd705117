"""What one member reads of the shards that it owns, and hands out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from hivewire.backend import Fetched, Ownership
from hivewire.backends.redis import reading
from hivewire.backends.redis.address import Reply
from hivewire.backends.redis.keys import Names
from hivewire.backends.redis.link import good
from hivewire.backends.redis.reading import Held
from hivewire.backends.redis.tenure import Tenure
from hivewire.backends.redis.waiting import News, Stillness
from hivewire.backends.redis.watching import READ_EPOCH, Question, Watch
from hivewire.errors import Closed

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

_TURNS = 3
"""Of the loop, before a read is sent off to wait: so many a caller takes whose answer has come to send what is next."""


class Taking:
    """Reads what bells and looks say is there, or waits for it with a read in the server.

    Who takes is told by `came`, or waits in `fetch`. Invariant: while somebody asks, a read is under way, or waits in
    the server, or is about to, or a timer looks again; or others want stillness, at whose end it goes on.
    """

    def __init__(self, backend: RedisBackend, queue: str, names: Names, tenure: Tenure, owner: Ownership) -> None:
        self._backend = backend
        self._queue = queue
        self._names = names
        self._tenure = tenure
        self._held = tenure.held
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._news = News()
        self._hot: set[int] = set()
        """Shards in which there may be something to read."""
        self._filled: dict[int, Held] = {}
        """Those of which something is read and not handed out."""
        self._stillness = Stillness()
        self._portion = reading.Portion()
        self._least_look_s = backend.settings.redis.block_timeout_s
        self._look_s = self._least_look_s
        self._watch = Watch(backend, names, self._portion, self._arrived, self.look_again)
        self._watch_soon: asyncio.Handle | None = None
        self._is_watching = False
        """Reads wait in the server: one does, or who takes next asks for it. Bells are not listened to."""
        self._hears_bell = False
        self._closed = False
        self._asked: tuple[int, int, int] | None = None
        """What the owner wants to be told of: how many, of how many keys, how many of each."""
        self._asked_at = 0.0
        self._reading: Question | None = None
        """It is under way for the owner."""
        self._has_failed = False
        """The owner was told so, and not yet that it is over."""
        self._is_called = False
        """`_go_on` is about to run."""
        self._timer: asyncio.TimerHandle | None = None

    # -- news

    def heard(self, shard: int) -> None:
        """A bell."""
        if shard in self._held and not self._is_watching:
            self._hot.add(shard)
            self._tell()

    def sent_here(self, held: Held) -> None:
        """A record is on its way to this shard: it is read in its turn, behind the record on the same connection."""
        if self._is_watching and (not self._watch.is_asked or self._watch.covers(held)):
            self._watch.rung()
        else:
            self._hot.add(held.shard)
            self._tell()

    def rewind(self) -> None:
        """The connection was made anew, perhaps to a server that was started anew."""
        self._watch.move()
        for held in self._held.values():
            held.rewind()
        self.look_again()

    def shards_changed(self) -> None:
        if self._watch.is_asked and not all(map(self._watch.covers, self._readable())):
            self._watch.move()
        self.look_again()

    def look_again(self) -> None:
        self._hot.update(self._held)
        self._tell()

    def _tell(self) -> None:
        """Bells that ring at one time lead to one read."""
        self._news.tell()
        if self._asked is not None and not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._go_on)

    # -- for an owner that is told

    def take_now(self, limit: int, lanes: int, run: int) -> tuple[Sequence[Fetched], bool]:
        """See `Consumer.fetch_now`."""
        if self._filled and not self._stillness.is_asked:
            taken = self._hand_out(limit, lanes, run)
            if taken:
                return taken, False
        self._asked, self._asked_at, self._look_s = (limit, lanes, run), self._loop.time(), self._least_look_s
        self._tenure.begins()
        try:
            self._tenure.take_part()
            self._seek(limit)
        except BaseException:
            self.ask_no_more()
            raise
        return (), True

    def ask_no_more(self) -> None:
        if self._asked is not None:
            self._asked = None
            self._tenure.ends()

    def _come(self, batch: Sequence[Fetched], error: BaseException | None = None) -> None:
        self.ask_no_more()
        self._owner.came(batch, error)

    def _go_on(self) -> None:
        """Bring what was asked for, or see to it that it comes."""
        self._is_called = False
        asked = self._asked
        if asked is None or self._closed or self._reading is not None or self._stillness.is_asked:
            return
        taken = self._hand_out(*asked) if self._filled else ()
        if taken:
            self._come(taken)
            return
        try:
            self._seek(asked[0])
        except Exception as error:  # noqa: BLE001  # told to the owner, as `fetch` would raise it
            self._come((), error)

    def _seek(self, limit: int) -> None:
        """Nothing is at hand: read what may be there, or wait."""
        if self._reading is not None or self._stillness.is_asked:
            return
        question = self._question(limit) if self._hot else None
        if question is not None:
            self._reading, self._stillness.reading = question, True
            self._backend.link.post_for(self._answered, (question.command(), READ_EPOCH), beyond_s=0.0)
        elif not self._watches() and self._timer is None:
            self._timer = self._loop.call_later(self._look_s, self._look)

    def _answered(self, posted: asyncio.Future[list[Reply]]) -> None:
        question, self._reading = self._reading, None
        assert question is not None
        problem: Exception | None = None
        try:
            self._read_in(question, posted.result())
        except Exception as error:  # noqa: BLE001  # told to the owner, as `fetch` would raise it
            self._unread(question)
            problem = error
        self._stillness.read()  # before the next read may begin
        if problem is None and self._has_failed and self._asked is not None:
            self._has_failed = False
            self._come(self._hand_out(*self._asked))
        elif problem is None:
            self._go_on()
        elif self._asked is not None:
            self._has_failed = True
            self._come((), problem)

    def _look(self) -> None:
        """Should a bell have been lost. Rarer, the longer nothing comes."""
        self._timer = None
        if self._asked is None or self._closed:
            return
        left = self._asked_at + self._look_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif not self._watches():
            self._asked_at = self._loop.time()
            self._look_s = min(2 * self._look_s, reading.LOOK_RARER * self._least_look_s)
            self.look_again()

    # -- for one that waits

    async def fetch(self, limit: int, wait_s: float, lanes: int, run: int) -> Sequence[Fetched]:
        time = self._loop.time
        until, look_s = time() + wait_s, self._least_look_s
        most_s = reading.LOOK_RARER * look_s
        self._tenure.begins()
        try:
            await self._tenure.awake()
            if wait_s <= 0:  # what was stored just now: its bell may still be on the way
                self.look_again()
            while True:
                self._news.is_there = False
                taken = await self._take(limit, lanes, run) if self._hot or self._filled else ()
                left = until - time()
                if taken or left <= 0 or self._closed:
                    return taken
                if not await self._news.wait(left if self._watches() else min(left, look_s)):
                    look_s = min(2 * look_s, most_s)
                    self.look_again()
        finally:
            self._tenure.ends()

    async def _take(self, limit: int, lanes: int, run: int) -> Sequence[Fetched]:
        stillness = self._stillness
        if stillness.is_asked:
            await stillness.free()
        stillness.reading = True
        try:
            taken = self._hand_out(limit, lanes, run) if self._filled else ()
            if not taken:
                await self._read(limit)
                taken = self._hand_out(limit, lanes, run)
            return taken
        finally:
            stillness.read()

    async def _read(self, limit: int) -> None:
        question = self._question(limit)
        if question is not None:
            try:
                self._read_in(question, await self._backend.link.post((question.command(), READ_EPOCH)))
            except BaseException:
                self._unread(question)
                raise

    # -- reads that do not wait in the server

    def _question(self, limit: int) -> Question | None:
        """Of what is hot; from here on it is not, until `_unread`."""
        hot, all_held = self._hot, self._held
        asked = [held for n in hot if (held := all_held.get(n)) is not None and not held.is_leaving]
        self._hot = set()
        if not asked:
            return None
        most = min(max(16, limit // len(asked)), limit, self._portion.most(len(asked)))
        return Question(self._names, asked, most)

    def _unread(self, question: Question) -> None:
        self._hot.update([held.shard for held in question.asked])

    def _read_in(self, question: Question, answers: Sequence[Reply]) -> None:
        found, epoch = answers
        found = good(found, f"read {self._queue}")
        self._backend.set_epoch(good(epoch, "read the catalogue's epoch"))
        if found:
            self._keep(question, found)

    def _keep(self, question: Question, found: Sequence[Any]) -> None:
        for held, entries, is_all in question.new(self._held, found):
            self._backend.not_before(held.take(entries))
            self._filled[held.shard] = held
            self._portion.note(entries)
            if not is_all:  # else a bell that rang meanwhile still counts
                self._hot.add(held.shard)

    def _hand_out(self, limit: int, lanes: int, run: int) -> Sequence[Fetched]:
        """What is handed out, given up or lost is not what was read and waits."""
        filled, held = self._filled, self._held
        mine = [one for n, one in filled.items() if held.get(n) is one and not one.is_leaving]
        taken = reading.hand_out(mine, limit, lanes, run) if mine else ()
        self._filled = {one.shard: one for one in mine if one.buffer}
        return taken

    # -- a read that does

    def _watches(self) -> bool:
        """Whether a read waits in the server for all that may come, or is about to."""
        if self._watch.is_asked:
            return True
        self._is_watching = self._backend.may_watch(self._queue) and self._watch.may_ask and self._may_read()
        if not self._is_watching:
            self._listen()
        elif self._watch_soon is None:
            self._ask_later(_TURNS if self._asked is None else 0)  # who is told asks late enough
        return self._is_watching

    def _listen(self) -> None:
        """To the bell. What came while nobody listened is looked for, now and when the server has confirmed it."""
        if not self._hears_bell:
            self._hears_bell = True
            self._backend.ears.listen(self._names.bell, self.bell)
            self._watch.rest()
            self.look_again()

    def _listen_no_more(self) -> None:
        """A bell would only wake us twice."""
        if self._hears_bell:
            self._hears_bell = False
            self._backend.hear_no_more(self._names.bell, self.bell)

    def bell(self, what: bytes | None) -> None:
        """Which shards have something new; None: a bell may have been missed."""
        if what is None:
            self.look_again()
        else:
            for part in what.split(b","):
                if part.isdigit():
                    self.heard(int(part))

    def _readable(self) -> list[Held]:
        return [held for held in self._held.values() if not held.is_leaving]

    def _may_read(self) -> bool:
        """Whether there is something to ask of."""
        return any(not held.is_leaving for held in self._held.values())

    def _ask_later(self, turns: int) -> None:
        """What was taken is handled first, and what is sent because of it goes first."""
        if turns:
            self._watch_soon = self._loop.call_soon(self._ask_later, turns - 1)
            return
        self._watch_soon = None
        asked = self._readable()
        if self._closed or not asked or self._stillness.is_asked:
            self._is_watching = False
            self.look_again()
            return
        self._listen_no_more()
        self._watch.ask(asked)

    def _arrived(self, question: Question, found: Sequence[Any]) -> None:
        """What a read that waited in the server has found, perhaps nothing."""
        self._keep(question, found)
        self._news.tell()
        self._go_on()

    # -- those who look into what was read

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Nothing is read while this lasts."""
        try:
            async with self._stillness.kept():
                self._watch.void()
                yield
        finally:
            self._tell()

    def unread(self, shard: int, id: bytes) -> Held | None:
        """See `RedisMember.unread`."""
        held = self._held.get(shard)
        if held is None or held.is_leaving:
            return None
        return held if held.take_back(id) else None

    # -- ending

    def abandon(self) -> None:
        self._closed = True

    async def stop(self) -> None:
        self.abandon()
        self._news.tell()
        if self._timer is not None:
            self._timer.cancel()
        self._listen_no_more()
        if self._asked is not None:
            self._come((), Closed(f"receive from {self._queue}: it was left"))
        await self._watch.close()
