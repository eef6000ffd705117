"""Handlers that outlive the ownership of their partition: who runs them is in the log of claims.

Invariants: before a partition is given up, the log says which of its records still run here; who takes it over reads
that first. A record is free again when its member says so, leaves, or is silent for its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Final

from hivewire.backend import Again, Dead, Fetched, Ownership, Unfinished
from hivewire.backends.kafka.claims import pool_of_moved
from hivewire.backends.kafka.feed import number
from hivewire.backends.kafka.partition import Taken
from hivewire.backends.kafka.seat import Seat
from hivewire.errors import BackendError
from hivewire.rules.finished import Finished
from hivewire.rules.moved import before_this_start, returned_of, taken_over
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Heard, Kept, Offer, Take, Word

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_TICK_S: Final = 0.2
_AT_ONCE: Final = 1_000
"""Of what is held in one word: it must not be larger than a broker takes."""
_EXISTS: Final = "away/"


async def moved(backend: KafkaBackend, queue: str) -> Pool | None:
    """Who runs which records of partitions that have moved; None: none has, as far as is known here."""
    if not backend.catalogue.known(_EXISTS + queue).version:
        return None
    name = pool_of_moved(queue)
    return (await backend.claims.log_of(name)).pool(name)


class MovedWork:
    """Of one consumer. Costs nothing until a handler outlives its partition for the first time."""

    def __init__(self, backend: KafkaBackend, queue: str, owner: Ownership) -> None:
        self._backend = backend
        self._queue = queue
        self._owner = owner
        self._seat = Seat(backend, pool_of_moved(queue), backend.names.topic(queue), self._heard)
        self._joining = asyncio.Lock()
        self._watched: dict[int, tuple[int, set[int]]] = {}
        """Of each partition that is owned here: the token, and what others run of it."""
        self._keeper: asyncio.Task[None] | None = None
        self._is_holding = False
        self._finished = Finished()
        self._unsure: list[Fetched] = []
        """Nobody knows whether the log says that these run here; they do not, beyond their partition."""
        self._saying = asyncio.Lock()
        """What is held and what is taken back is said one after the other: of a record that is in both the last one
        counts, and what is not known of it stands in `_unsure`."""

    async def _join(self) -> Pool:
        async with self._joining:
            if not self._seat.is_in:
                await self._seat.open()
                await self._seat.join()
            if self._keeper is None:
                loop = asyncio.get_running_loop()
                self._keeper = loop.create_task(self._keep(), name=f"keep what runs elsewhere of {self._queue}")
        return self._seat.pool

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                if not self._seat.is_in or self._seat.has_lapsed:
                    self._lapsed()
                    await self._join()
                await self._take_back()
                await self._seat.look_after_others()
                self._seat.log.tidy()
            except BackendError as error:
                log.warning("cannot look after what runs elsewhere yet: %s", error)

    def _lapsed(self) -> None:
        self._seat.is_in = False
        if self._is_holding:
            self._is_holding = False
            self._owner.lost_held()

    # -- what runs here

    async def hold(self, batch: Sequence[Fetched]) -> None:
        """Say that these run here. Raises `BackendError` when that cannot be said."""
        await self._join()
        await self._backend.catalogue.note(_EXISTS + self._queue)
        async with self._saying:
            taken = {_at(fetched) for fetched in batch}
            self._unsure = [fetched for fetched in self._unsure if _at(fetched) not in taken]
            try:
                await self._say_held(batch, taken)
            except BaseException:
                self._unsure += batch
                raise
        self._is_holding = True

    async def _say_held(self, batch: Sequence[Fetched], taken: Set[At]) -> None:
        name = self._seat.name
        for start in range(0, len(batch), _AT_ONCE):
            offers = [self._offer(fetched) for fetched in batch[start : start + _AT_ONCE]]
            await self._seat.say(Word(name, take=Take(len(offers), len(offers), offers, runs=True)))
        pool = self._seat.pool
        if not all(pool.is_held(at, name) or pool.is_finished(at) for at in taken):
            raise BackendError(f"give up a partition of {self._queue}: somebody else holds what runs here")

    def _offer(self, fetched: Fetched) -> Offer:
        at = _at(fetched)
        return Offer(*at, number((self._queue, *at)), 0, before_this_start(fetched))

    async def _take_back(self) -> None:
        """Else the next owner would wait for them for as long as this process lives."""
        async with self._saying:
            if self._unsure:
                back = [_kept(fetched, 0.0) for fetched in self._unsure]
                await self._seat.say(Word(self._seat.name, back=back))
                self._unsure = []

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """Tell what became of them; returns those that are somebody else's by now."""
        dead = [
            outcome
            for outcome in rest
            if isinstance(outcome, Dead) and self._seat.pool.is_held(_at(outcome.fetched), self._seat.name)
        ]
        if dead:
            await self._backend.letters.bury(self._queue, dead)
        finished = [*done, *(outcome.fetched for outcome in rest if isinstance(outcome, Dead))]
        now = self._backend.now()
        back = [
            _kept(outcome.fetched, now + outcome.delay_s if isinstance(outcome, Again) else 0.0)
            for outcome in rest
            if not isinstance(outcome, Dead)
        ]
        ats = self._finished.still(map(_at, finished))
        if not (ats or back):
            return []
        heard = await self._seat.say(Word(self._seat.name, done=sorted(ats), back=back))
        refused = self._finished.still(heard.refused)
        every = [*done, *(outcome.fetched for outcome in rest)]
        return [fetched for fetched in every if _at(fetched) in refused]

    # -- what runs elsewhere

    async def away_from(self, taken: Taken, topic_id: str) -> tuple[bytes, Sequence[int]]:
        """What was saved of the partition, with what has become of records that ran elsewhere since, and those
        that still do. Those of a topic that is gone do not count in the one that has its name."""
        if not (await self._backend.catalogue.get(_EXISTS + self._queue)).version:
            return taken.state, ()
        pool = await self._join()
        await self._seat.log.catch_up()
        if pool.topic not in ("", topic_id):
            await self._backend.claims.made_anew(self._queue)
        shard = taken.place[1]
        state, held = taken_over(pool, shard, taken.watermark, taken.state)
        if held:
            self._watched[shard] = (taken.token, set(held))
        return state, held

    def forget(self, shard: int) -> None:
        self._watched.pop(shard, None)

    async def deleted(self, before: Mapping[int, int]) -> None:
        """What lies before these positions is gone from partitions that are owned here: what is remembered of it would
        grow for ever."""
        if not self._seat.is_in:
            return
        gone = [(shard, at) for shard, at in before.items() if self._seat.pool.remembers(shard, at)]
        if gone:
            await self._seat.say(Word(self._seat.name, gone=gone))

    def _heard(self, word: Word, heard: Heard, is_mine: bool) -> None:
        if is_mine:
            self._finished.heard(word, heard)
        if not self._seat.is_in and self._is_holding:
            self._lapsed()
        if not (word.done or heard.freed):
            return
        pool = self._seat.pool
        for shard, (token, positions) in tuple(self._watched.items()):
            for at in tuple(positions):
                if not pool.is_taken((shard, at)):
                    positions.discard(at)
                    self._owner.returned(shard, token, at, returned_of(pool, (shard, at)))

    # -- ending

    def abandon(self) -> None:
        self._seat.end()
        if self._keeper is not None:
            self._keeper.cancel()

    async def stop(self) -> None:
        is_in = self._seat.is_in
        self.abandon()
        if self._keeper is not None:
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._seat.is_in = is_in

    async def close(self) -> None:
        await self.stop()
        await self._seat.leave()


def _at(fetched: Fetched) -> At:
    return fetched.shard, int(fetched.at)


def _kept(fetched: Fetched, due_at: float) -> Kept:
    return Kept(*_at(fetched), fetched.starts, fetched.failures, fetched.crashes, due_at)
