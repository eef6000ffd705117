"""Shards that this member owns, where the store leases shards and lanes live in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from hivewire.backend import Again, Consumer, Dead, Saved, Unfinished
from hivewire.engine.flag import Flag
from hivewire.record import Fetched
from hivewire.rules.moved import before_this_start
from hivewire.rules.progress import History, Progress, decode, encode
from hivewire.rules.watermark import Watermark

_MOST_STATE_BYTES = 2_400
"""What a store must be able to keep of a shard."""
_MOST_DUE = 20
_AT = attrgetter("at")
_OWNERSHIP = attrgetter("shard", "token")
_COUNTERS = (attrgetter("starts"), attrgetter("failures"), attrgetter("crashes"))


class Shard:
    """One owned shard. `mark` is None where the store takes an acknowledgement of each record."""

    def __init__(self, token: int, saved: bytes, *, per_record_ack: bool) -> None:
        self.token = token
        self.closing = False
        self._open: dict[int, Fetched] = {}
        self._before: dict[int, History] = {}
        self._due: dict[int, float] = {}
        self._died = 0
        self._suspect_to = 0
        self.mark: Watermark | None = None
        if per_record_ack:
            return
        state = decode(saved)
        self.mark = Watermark(state.watermark, state.ahead)
        self._before = {entry.at: entry for entry in state.history}
        self._died = state.running
        self._suspect_to = state.taken_to

    def take(self, fetched: Fetched) -> bool:
        """Note a record; False when an earlier owner has finished it."""
        mark = self.mark
        if mark is None:
            return True
        at = int(fetched.at)
        if not mark.take(at):
            return False
        before = self._before.pop(at, None)
        if before is not None:
            fetched.starts, fetched.failures, fetched.crashes = before.starts, before.failures, before.crashes
            fetched.died = self._died if before.running else 0
        fetched.suspect = at < self._suspect_to
        self._open[at] = fetched
        return True

    def take_run(self, run: Sequence[Fetched]) -> bool:
        """`take` for all of these, in rising order, when nothing is known of any of them. False: nothing is noted."""
        assert self.mark is not None
        ats: list[int] = list(map(_AT, run))
        if self._before or ats[0] < self._suspect_to or sorted(ats) != ats or not self.mark.take_run(ats):
            return False
        self._open.update(zip(ats, run, strict=True))
        return True

    def finish(self, finished: Sequence[Fetched]) -> None:
        assert self.mark is not None
        ats: list[int] = list(map(_AT, finished))
        forget = self._open.pop
        for at in ats:
            forget(at, None)
        if self._due:
            for at in ats:
                self._due.pop(at, None)
        self.mark.finish_all(ats)

    def wait(self, fetched: Fetched, due_at: float) -> None:
        """It is tried again then."""
        self._due[int(fetched.at)] = due_at

    def state(self, *, handed_over: bool, away: Container[int] = ()) -> Saved:
        """The watermark and what belongs to it. `handed_over`: nothing of this member runs any more, but for what is
        `away`, by the identity of what was fetched."""
        assert self.mark is not None
        low = self.mark.at
        # Thousands may be open, and few of them are known for anything: they are sought without a step for each.
        known = {int(f.at): f for has in _COUNTERS for f in filter(has, self._open.values())}
        history = [
            History(
                at,
                before_this_start(f) if id(f) in away else f.starts,
                f.failures,
                f.crashes,
                f.marked and not handed_over,
            )
            for at, f in known.items()
        ]
        running = sum([entry.running for entry in history])
        # What an earlier owner left and nobody has taken yet keeps its history.
        history += [entry for at, entry in self._before.items() if at >= low]
        history.sort(key=lambda entry: entry.at)
        taken_to = low if handed_over else max(self.mark.end, self._suspect_to)
        ahead = self.mark.ahead
        state = encode(Progress(low, ahead, history, taken_to), _MOST_STATE_BYTES)
        due = () if handed_over else tuple(self._due.values())[:_MOST_DUE]
        return Saved(low, state, len(ahead), running, due)


class Shards:
    """The owned shards of one inbox; stores outcomes in the way that the store can."""

    def __init__(self, *, per_record_ack: bool) -> None:
        self.acks_each = per_record_ack
        """Outcomes go to the store as they are: there is no state of a shard to be kept up."""
        self._shards: dict[int, Shard] = {}
        self._saving = asyncio.Lock()
        self.freed = Flag()
        """A lane was left by its taker: who gives shards up waits until nothing of theirs runs any more."""

    def gained(self, number: int, token: int, saved: bytes) -> None:
        self._shards[number] = Shard(token, saved, per_record_ack=self.acks_each)

    def lost(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._shards.pop(number, None)

    def close(self, numbers: Iterable[int]) -> None:
        """Take nothing more of these."""
        for number in numbers:
            if number in self._shards:
                self._shards[number].closing = True

    def accept(self, batch: Sequence[Fetched]) -> tuple[Sequence[Fetched], Sequence[Fetched]]:
        """Those that belong to an owned shard, and of these the ones that an earlier owner has finished."""
        if self.acks_each and len(batch) == 1:  # who waits for it waits least
            return (batch, ()) if self.owns(batch[0]) else ((), ())
        accepted: list[Fetched] = []
        finished: list[Fetched] = []
        for (number, token), some in groupby(batch, _OWNERSHIP):  # long runs are common
            shard = self._shards.get(number)
            if shard is None or shard.token != token or shard.closing:
                continue
            run = list(some)
            if shard.mark is None or shard.take_run(run):
                accepted += run
                continue
            for fetched in run:
                (accepted if shard.take(fetched) else finished).append(fetched)
        return accepted, finished

    def has(self, number: int, token: int) -> bool:
        """Whether it is owned here, by this ownership."""
        shard = self._shards.get(number)
        return shard is not None and shard.token == token

    def owns(self, fetched: Fetched) -> bool:
        """Whether it may be started here."""
        return self.has_it(fetched) and not self._shards[fetched.shard].closing

    def has_it(self, fetched: Fetched) -> bool:
        """Whether its shard is owned here as it was when it was taken."""
        return self.has(fetched.shard, fetched.token)

    def states(self, numbers: Iterable[int], away: Container[int] = ()) -> dict[int, Saved]:
        """To hand over. Nothing where the store takes an acknowledgement of each record. `away`: see `Shard.state`."""
        owned = {number: shard for number in numbers if (shard := self._shards.get(number)) is not None}
        return {n: shard.state(handed_over=True, away=away) for n, shard in owned.items() if shard.mark is not None}

    async def settle(
        self, consumer: Consumer, done: Sequence[Fetched], rest: Sequence[Unfinished], now: float
    ) -> Sequence[Fetched]:
        """Store outcomes; returns those refused."""
        if self.acks_each:
            return await consumer.settle(done, rest)
        dead = [outcome for outcome in rest if isinstance(outcome, Dead)]
        refused = list(await consumer.settle((), dead)) if dead else []
        gone = {id(fetched) for fetched in refused}
        touched: dict[int, int] = {}
        finished = [*done, *(outcome.fetched for outcome in dead if id(outcome.fetched) not in gone)]
        for (number, token), some in groupby(finished, _OWNERSHIP):
            shard = self._shards.get(number)
            if shard is None or shard.token != token:
                refused += some
                continue
            shard.finish(list(some))
            touched[number] = token
        for outcome in rest:
            shard = self._shards.get(outcome.fetched.shard)
            if isinstance(outcome, Again) and shard is not None and shard.token == outcome.fetched.token:
                shard.wait(outcome.fetched, now + outcome.delay_s)
                touched[outcome.fetched.shard] = shard.token
        lost = await self.save(consumer, touched)
        if lost:
            refused.extend(fetched for fetched in finished if fetched.shard in lost)
        return refused

    async def mark(self, consumer: Consumer, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Store running marks; returns those whose shard is lost."""
        if self.acks_each:
            return await consumer.start(batch)
        lost = await self.save(consumer, {fetched.shard: fetched.token for fetched in batch if self.has_it(fetched)})
        return [fetched for fetched in batch if fetched.shard in lost or not self.has_it(fetched)]

    async def save(self, consumer: Consumer, wanted: Mapping[int, int]) -> set[int]:
        """Commit these shards, by number and token, one at a time: an older state must not overtake a newer one.
        Returns those that are somebody else's, or went while this waited for its turn."""
        async with self._saving:
            owned = {number: self._shards[number] for number, token in wanted.items() if self.has(number, token)}
            lost = set(wanted.keys() - owned.keys())
            states = {n: shard.state(handed_over=False) for n, shard in owned.items() if shard.mark is not None}
            return lost | set(await consumer.save(states)) if states else lost
