"""One member of a competing queue: any idle one takes the next message, whoever owns partitions.

Nothing here decides who has what: a member says in the log of claims what it would take, and reads there what it got.
Invariants: a message is handed to the engine once for each grant; what a member says under a name that was buried
changes nothing; the name is new after each lapse.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.backend import Again, Consumer, Dead, Fetched, Ownership, Unfinished
from hivewire.backends.kafka.feed import Feed, Fresh
from hivewire.backends.kafka.packing import record_of, stored_at
from hivewire.backends.kafka.seat import Seat
from hivewire.backends.kafka.tail import Place
from hivewire.errors import BackendError
from hivewire.rules.finished import Finished
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Grant, Heard, Kept, Offer, Take, Word

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_TICK_S: Final = 0.2
_RETRY_S: Final = 0.1
_UNLUCKY_S: Final = 0.02
_MORE: Final = 4
"""Offers for each message that is wanted: others want some, too."""
_LEAST_OFFERS: Final = 32
_MOST_OFFERS: Final = 1_000
_CATCH_UP_S: Final = 2.0


class CompetingConsumer(Consumer):
    """Its seat in the pool has the name and the lease."""

    def __init__(self, backend: KafkaBackend, queue: str, owner: Ownership) -> None:
        self.backend = backend
        self.queue = queue
        self.topic = backend.names.topic(queue)
        self._owner = owner
        self.seat = Seat(backend, queue, self.topic, self._heard)
        self._token = -1
        """That of what is held; -1: nothing can be held."""
        self._feed: Feed | None = None
        self._news = asyncio.Event()
        self._ready: deque[Fetched] = deque()
        self._unused: dict[At, Grant] = {}
        """What was granted and is not handed out."""
        self._finished = Finished()
        """Finished under the present name: to settle one of them again is no error."""
        self._asking: asyncio.Task[None] | None = None
        self._filling = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.owned: set[int] = set()
        """Partitions into which this member moves what was delayed: one member moves for all."""

    # -- membership

    async def open(self) -> None:
        self._feed = self.backend.feed(self.queue, await self.seat.open())
        self._feed.listen(self._stir)
        await self._join()
        self._spawn(self._keep(), f"keep the claims of {self.queue}")
        self._spawn(self.backend.delays.keep_moving(self.queue, self.owned), f"delayed messages of {self.queue}")

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("task failed", extra={"task": task.get_name()}, exc_info=task.exception())

    @property
    def feed(self) -> Feed:
        assert self._feed is not None
        return self._feed

    @property
    def pool(self) -> Pool:
        return self.seat.pool

    async def reads(self, topic_id: str) -> None:
        await self.seat.reads(topic_id)

    def _stir(self) -> None:
        self._news.set()

    async def _join(self) -> None:
        await self.seat.join()
        await self.feed.follow()
        self._token = self.seat.token
        await self._owner.gained(0, self._token, b"")
        self._news.set()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                if not self.seat.is_in or self.seat.has_lapsed or self.feed.is_anew:
                    await self._begin_again()
                await self._look_around()
            except BackendError as error:
                log.warning("cannot keep the claims yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_RETRY_S)

    async def _begin_again(self) -> None:
        """What was held is with others, or must be given to them."""
        self._lose()
        await self.seat.say(Word(self.seat.name))  # then all is known that was granted under this name
        await self.seat.say(self._word_of_leaving())
        self._unused.clear()
        await self._join()

    def _lose(self) -> None:
        self.seat.is_in = False
        self._token = -1
        self._ready.clear()
        self._owner.lost({0})

    async def _look_around(self) -> None:
        pool = self.pool
        if min(pool.members, default="") == self.seat.name:
            self.owned.update(range(self.feed.partitions))
        else:
            self.owned.clear()
        self.seat.log.tidy()
        if self.feed.gaps:
            gaps, self.feed.gaps = self.feed.gaps, []
            await self.seat.say(Word(self.seat.name, gaps=gaps))
        await self.seat.look_after_others()

    # -- what the log tells

    def _heard(self, word: Word, heard: Heard, is_mine: bool) -> None:
        if not self.seat.is_in and self._token >= 0 and not self._closed:
            log.warning("the lease ended", extra={"queue": self.queue})
            self._lose()
        if is_mine:
            self._finished.heard(word, heard)
            self._unused.update((grant.at, grant) for grant in heard.granted)
            if heard.granted and self.seat.is_in:
                self._granted(heard.granted)
        if heard.freed or word.lease_s:
            self._news.set()

    def _granted(self, granted: Sequence[Grant]) -> None:
        missing: list[Grant] = []
        for grant in granted:
            fresh = self.feed.take(grant.at)
            if fresh is None:
                missing.append(grant)
            else:
                self._ready.append(self._fetched(grant, fresh))
        if missing:
            self._filling += 1
            self._spawn(self._fill(missing, self._token), f"read {self.queue} again")
        self._news.set()

    def _fetched(self, grant: Grant, fresh: Fresh) -> Fetched:
        counters = grant.starts, grant.failures, grant.crashes, grant.died
        marks = grant.suspect, grant.marked, grant.seen
        at = f"{grant.at[0]}:{grant.at[1]}"
        return Fetched(0, at, self._token, fresh.record, fresh.stored_at, *counters, *marks)

    async def _fill(self, granted: Sequence[Grant], token: int) -> None:
        """Those whose bodies are not here: they were with others before."""
        try:
            while token == self._token and self.seat.is_in and not self._closed:
                try:
                    bodies = await self._read([grant.at for grant in granted])
                    break
                except BackendError as error:
                    log.warning("cannot read messages again yet", extra={"queue": self.queue, "error": str(error)})
                    await asyncio.sleep(_RETRY_S)
            else:
                return
            if token != self._token or not self.seat.is_in:
                return
            self._ready.extend(self._fetched(grant, bodies[grant.at]) for grant in granted if grant.at in bodies)
            gone = [grant.at for grant in granted if grant.at not in bodies]
            if gone:
                self.backend.lost += len(gone)
                await self.seat.say(Word(self.seat.name, done=gone))
                for at in gone:
                    self._unused.pop(at, None)
        finally:
            self._filling -= 1
            self._news.set()

    async def _read(self, wanted: Sequence[At]) -> dict[At, Fresh]:
        found: dict[At, Fresh] = {}
        by_shard: dict[int, set[int]] = {}
        for at in wanted:
            fresh = self.feed.take(at)
            if fresh is not None:
                found[at] = fresh
            else:
                by_shard.setdefault(at[0], set()).add(at[1])
        for shard, offsets in by_shard.items():
            messages = await self.backend.reader.read(self.topic, shard, min(offsets), max(offsets), offsets)
            for message in messages:
                at = (shard, message.offset())
                found[at] = Fresh(at, record_of(message), stored_at(message))
        return found

    # -- taking

    def watermarks(self) -> dict[Place, int]:
        """Below these offsets all is finished."""
        return {(self.topic, number): self.pool.low(number) for number in range(self.feed.partitions)}

    def holds(self, fetched: Fetched) -> bool:
        return fetched.token == self._token and self.seat.is_in and not self.seat.has_lapsed

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        most = min(limit, lanes)
        if most <= 0:
            return ()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        if wait_s <= 0 and not self._ready:
            await self._catch_up()
        while not self._closed:
            self._news.clear()
            if self._ready:
                taken = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
                for fetched in taken:
                    self._unused.pop(_at(fetched), None)
                return taken
            is_under_way = self._ask(most, starting)
            left = until - loop.time()
            if left <= 0 and not is_under_way:
                return ()
            await self._wait(max(left, _CATCH_UP_S) if is_under_way else left)
            if left <= -_CATCH_UP_S:
                return ()
        return ()

    async def _wait(self, seconds: float) -> None:
        due_at = self.pool.next_due(self.backend.now())
        if due_at is not None:
            seconds = min(seconds, max(due_at - self.backend.now(), 0.001))
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    async def _catch_up(self) -> None:
        """What was stored just now is on its way here: who does not wait gets it all the same."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                places = [(self.topic, number) for number in range(self.feed.partitions)]
                found = await self.backend.admin.ends(places)
                ends = {number: end for (_, number), end in found.items()}
                while not self.feed.has_read(ends):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    def _ask(self, most: int, starting: int) -> bool:
        """Say what would be taken. Whether an answer is still to come."""
        if self._asking is not None or self._filling:
            return True
        if not self.seat.is_in or self.seat.has_lapsed:
            return False
        wanted = min(max(_MORE * most, _LEAST_OFFERS), _MOST_OFFERS)
        now = self.backend.now()
        pool = self.pool
        again = [Offer(*at, pool.known[at].life, pool.known[at].key) for at in pool.free if pool.may_be_taken(at, now)]
        fresh = self.feed.offers(wanted)
        if not again and not fresh:
            return False
        take = Take(most, starting, [*again[:wanted], *fresh])
        self._asking = self._spawn(self._say_take(take, fresh), f"take from {self.queue}")
        return True

    async def _say_take(self, take: Take, fresh: Sequence[Offer]) -> None:
        granted = 0
        try:
            heard = await self.seat.say(Word(self.seat.name, take=take))
            granted = len(heard.granted)
            if not granted:
                await asyncio.sleep(_UNLUCKY_S)
        except BackendError as error:  # what was granted all the same is told by the log
            log.debug("cannot take yet", extra={"queue": self.queue, "error": str(error)})
            await asyncio.sleep(_RETRY_S)
        finally:
            self.feed.settle(fresh, granted)
            self._asking = None
            self._news.set()

    # -- outcomes

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        self.backend.check_usable()
        return await self._say(batch, (), [_kept(fetched) for fetched in batch if fetched.token == self._token], ())

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        self.backend.check_usable()
        dead = [outcome for outcome in rest if isinstance(outcome, Dead) and self._has(outcome.fetched)]
        if dead:
            await self.backend.letters.bury(self.queue, dead)
        finished = [*done, *(outcome.fetched for outcome in rest if isinstance(outcome, Dead))]
        now = self.backend.now()
        back = [
            _kept(outcome.fetched, now + outcome.delay_s if isinstance(outcome, Again) else 0.0)
            for outcome in rest
            if not isinstance(outcome, Dead) and outcome.fetched.token == self._token
        ]
        ats = self._finished.still(_at(fetched) for fetched in finished if fetched.token == self._token)
        return await self._say([*finished, *(outcome.fetched for outcome in rest)], sorted(ats), (), back)

    async def _say(
        self, about: Sequence[Fetched], done: Sequence[At], started: Sequence[Kept], back: Sequence[Kept]
    ) -> list[Fetched]:
        """Returns those of the records that were refused."""
        token = self._token
        refused: set[At] = set()
        if done or started or back:
            heard = await self.seat.say(Word(self.seat.name, done=done, started=started, back=back))
            refused = self._finished.still(heard.refused)
        unique = {id(fetched): fetched for fetched in about}
        return [fetched for fetched in unique.values() if fetched.token != token or _at(fetched) in refused]

    def _has(self, fetched: Fetched) -> bool:
        return fetched.token == self._token and self.pool.is_held(_at(fetched), self.seat.name)

    # -- ending

    def abandon(self) -> None:
        """As if the process was killed."""
        self._closed = True
        self.seat.end()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        self._closed = True
        self.seat.end()
        self._news.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._news.set()
        try:
            if self._asking is not None:  # what is granted to it must be given back with its counters
                await asyncio.wait([self._asking], timeout=_CATCH_UP_S)
        finally:  # whoever is cancelled here must not beat on
            is_in = self.seat.is_in
            await self.stop()
            self.backend.discard(self)
            if self._feed is not None and self._feed.close(self._stir):
                self.backend.feeds.pop(self.queue, None)
        self.seat.is_in = is_in
        await self.seat.leave(self._word_of_leaving())

    def _word_of_leaving(self) -> Word:
        """What was granted and never handed out was not started, whatever its grant says."""
        back = [Kept(*g.at, g.starts - 1, g.failures, g.crashes) for g in self._unused.values() if g.marked]
        return Word(self.seat.name, leaves=True, back=back)


def _at(fetched: Fetched) -> At:
    shard, _, offset = str(fetched.at).partition(":")
    return int(shard), int(offset)


def _kept(fetched: Fetched, due_at: float = 0.0) -> Kept:
    return Kept(*_at(fetched), fetched.starts, fetched.failures, fetched.crashes, due_at)
