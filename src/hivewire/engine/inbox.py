"""One process's part of one agent's queue: taking from the store, and what the store's driver tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Hashable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Final

from hivewire.backend import Ownership, Returned, Saved
from hivewire.engine.admission import Admission, Types
from hivewire.engine.away import Away
from hivewire.engine.core import Core
from hivewire.engine.handed import Handed
from hivewire.engine.held import Held
from hivewire.engine.later import Later
from hivewire.engine.outcomes import Outcomes
from hivewire.errors import BackendError, Closed
from hivewire.record import VOLATILE_SHARD, Fetched, Record
from hivewire.rules.lanes import Lane

log = logging.getLogger(__name__)

_FLUSH_S: Final = 5.0
_LEAVE_S: Final = 10.0
_VOLATILE_KEY: Final = "\x00volatile/"
_MOST_VOLATILE: Final = 10_000


class Inbox(Ownership):
    """Takes records into lanes, gives shards up in order, and leaves nothing behind.

    What it holds is in `held`; whether something may be started, `admission` says; what became of it is told to
    `outcomes`.
    """

    __slots__ = ("_away", "_handed", "_later", "admission", "held", "outcomes")

    def __init__(self, core: Core, queue: str, types: Types, *, competing: bool) -> None:
        self.held = Held(core, queue, competing=competing)
        self.outcomes = Outcomes(self.held)
        self.admission = Admission(self.outcomes, types)
        self._handed: Handed | None = None
        self._away: Away | None = None
        self._later: Later | None = None

    @property
    def core(self) -> Core:
        return self.held.core

    @property
    def queue(self) -> str:
        return self.held.queue

    @property
    def handed(self) -> Handed:
        """What is with callers of `receive`."""
        if self._handed is None:
            self._handed = Handed(self.outcomes)
        return self._handed

    @property
    def away(self) -> Away:
        """What outlives the ownership of its shard: made when the first does."""
        if self._away is None:
            self._away = Away(self.outcomes)
        return self._away

    async def start(self) -> None:
        """Raises `Closed`, and leaves nothing behind, when the protocol was closed meanwhile."""
        held = self.held
        closed = f"receive from {held.queue}: the protocol was closed"
        if self._is_over():
            raise Closed(closed)
        consumer = await held.core.backend.consume(held.queue, held.core.member(), self)
        if self._is_over():
            await consumer.close()
            raise Closed(closed)
        held.joined = consumer
        if consumer.tells and (held.shards is None or held.shards.acks_each):
            self.outcomes.settling.direct = consumer

    def _is_over(self) -> bool:
        return self.held.closed or self.core.takes_no_more or self.core.tasks.closed

    # -- what the driver tells

    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Hashable] = ()) -> None:
        if self.held.shards is not None:
            self.held.shards.gained(shard, token, saved)
        self.held.remembered.before(settled, self.core.backend.now())

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        if self.held.shards is None:
            return {}
        await self._come_to_rest(shards, within_s)
        states = self.held.shards.states(shards)
        self.lost(shards)  # and with it what still runs
        return states

    async def hand_over(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        if self.held.shards is None:
            return {}
        taken = await self._come_to_rest(shards, within_s)
        unsettled = self.outcomes.settling.unsettled()
        await self.away.keep(taken, [one for one in unsettled if one.shard in shards and self.held.shards.has_it(one)])
        states = self.held.shards.states(shards, self.away.running)
        self.lost(shards)
        return states

    async def _come_to_rest(self, shards: Set[int], within_s: float) -> list[Lane]:
        """Start nothing more, and wait for what runs. The lanes that somebody had."""
        owned = self.held.shards
        assert owned is not None
        owned.close(shards)
        taken = self.held.lanes.end(shards)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(lane.taken and not lane.lost for lane in taken):
                    owned.freed.clear()
                    await owned.freed.wait()
                await self.outcomes.settling.flushed()
        return taken

    def expect(self, shard: int, away: Collection[int]) -> None:
        if away:
            self.away.expect(shard, away)

    def returned(self, shard: int, token: int, at: int, back: Returned | None) -> None:
        if self.held.shards is not None and self.held.shards.has(shard, token):
            self.away.returned((shard, at), back)

    def lost_held(self) -> None:
        self.away.lost_held()

    def busy(self, shards: Set[int]) -> Set[int]:
        return self.held.lanes.busy() & shards

    def rest(self, shards: Set[int]) -> None:
        self.held.lanes.rest(shards)

    def go_on(self, shards: Set[int]) -> None:
        self.held.lanes.go_on(shards)
        self.held.woken()

    def lost(self, shards: Set[int]) -> None:
        self.held.lost(shards)

    def news(self) -> None:
        if self.held.taker is not None:
            self.held.taker.news()

    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        if batch:
            self._sample_latency(batch[0])
        if self.held.taker is not None:
            self.held.taker.came(batch, error)

    # -- taking

    async def fetch(self, limit: int, wait_s: float, *, lanes: int, run: int, starting: int) -> Sequence[Fetched]:
        held = self.held
        if held.ending:  # what came now would be given back, and come again at once, and so on
            raise Closed(f"receive from {held.queue}: the protocol is being closed")
        batch = await held.consumer.fetch(limit, wait_s, lanes=lanes, run=run, starting=starting)
        if batch:
            self._sample_latency(batch[0])
        elif held.closed:
            raise Closed(f"receive from {held.queue}: the protocol was closed")
        return batch

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        """`fetch` without waiting, from a store that tells when there is more."""
        held = self.held
        if held.ending:
            raise Closed(f"receive from {held.queue}: the protocol is being closed")
        batch, is_all = held.consumer.fetch_now(limit, lanes=lanes, run=run, starting=starting)
        if batch:
            self._sample_latency(batch[0])
        return batch, is_all

    def ask_no_more(self) -> None:
        held = self.held
        if held.joined is not None and not held.closed:
            held.joined.ask_no_more()

    def _sample_latency(self, fetched: Fetched) -> None:
        """Once a batch: the reference's moving average."""
        metrics = self.held.metrics
        self.held.now = now = self.core.backend.now()
        metrics.average_latency += 0.2 * (max(0.0, now - fetched.stored_at) - metrics.average_latency)
        metrics.last_updated = now

    def take_in(self, batch: Sequence[Fetched]) -> None:
        """Put what was fetched into its lanes."""
        held = self.held
        if held.ending:
            if held.shards is None:
                self.outcomes.turn_away(batch)
            return  # a shard goes to its next owner with all that it holds
        held.remembered.tidy(held.now)
        if held.shards is not None:
            batch = self._of_owned_shards(batch)
        elif not held.remembered.here:
            held.remembered.look_for_twins(batch, held.now)
        held.lanes.add(batch)

    def _of_owned_shards(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Those that may go to their lanes now."""
        held = self.held
        assert held.shards is not None
        batch, finished = held.shards.accept(batch)
        if finished:
            for fetched in finished:
                held.remembered.add(fetched, held.now)
            self.core.tasks.start(self._save({one.shard: one.token for one in finished}), f"commit {held.queue}")
        if not held.core.features.delayed_append:
            if self._later is None:
                self._later = Later(held.core.backend.now, self._fallen_due)
            batch = self._later.keep(batch)
        return self._but_for_closed(batch)

    def _but_for_closed(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Without those of keys that are closed because they run elsewhere."""
        return self._away.shut(batch) if self._away is not None and self._away.awaited else batch

    async def _save(self, shards: Mapping[int, int]) -> None:
        """What was finished before may have moved the watermark."""
        assert self.held.shards is not None
        try:
            await self.held.shards.save(self.held.consumer, shards)
        except BackendError as error:
            log.debug("watermark not stored", extra={"queue": self.queue, "error": str(error)})

    def _fallen_due(self, batch: Sequence[Fetched]) -> None:
        shards = self.held.shards
        ours = [fetched for fetched in batch if shards is not None and shards.owns(fetched)]
        self.held.lanes.add(self._but_for_closed(ours))
        self.held.woken()

    def push_volatile(self, id: str, body: bytes, type: str) -> None:
        """A message that no store holds: handed out once, settled nowhere, dropped when too many wait."""
        if len(self.held.lanes) >= _MOST_VOLATILE:
            return
        record = Record(id, f"{_VOLATILE_KEY}{id}", body, type)
        now = self.core.backend.now()
        self.held.lanes.add([Fetched(VOLATILE_SHARD, 0, -1, record, now, starts=1, marked=True)])
        self.held.woken()

    # -- ending

    def abandon(self) -> None:
        """As if the process was killed: nothing is stored any more."""
        self.held.closed = True
        self.outcomes.settling.give_up()

    async def close(self) -> None:
        """Give back what is held unstarted, store what is noted, leave. Deliveries that are open come
        again when the store frees them."""
        held = self.held
        held.ending = True
        if held.closed or held.joined is None:
            held.closed = True
            return
        if self._handed is not None:
            self._handed.close()
        for lane in held.lanes.take_back():
            self.outcomes.give_back(lane)
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self.outcomes.settling.flushed()
        except TimeoutError:
            log.warning("closed with outcomes that are not stored", extra={"queue": held.queue})
        held.closed = True
        self.outcomes.settling.give_up()
        try:
            async with asyncio.timeout(_LEAVE_S):
                await held.joined.close()
        except TimeoutError:
            log.warning("left without giving back; the lease runs out", extra={"queue": held.queue})
