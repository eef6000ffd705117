"""Shards that this member owns, where the store leases shards and lanes live in the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from hivewire.backend import Again, Consumer, Dead, Unfinished
from hivewire.errors import LeaseLost
from hivewire.record import Fetched
from hivewire.rules.watermark import Watermark

_VERSION = 1


class _History(msgspec.Struct, array_like=True):
    """What is known of one unfinished record: its offset from the watermark and its counters."""

    distance: int
    starts: int
    failures: int
    crashes: int
    running: bool


class _Saved(msgspec.Struct, array_like=True):
    """The state of a shard beside its watermark."""

    version: int
    watermark: int
    ahead: list[int]
    """Finished above the watermark: pairs of distance from the end of the last run, and length."""
    history: list[_History]
    taken_to: int
    """Records below were with the owner that saved this; above, nobody has had them."""


_decoder = msgspec.msgpack.Decoder(_Saved)
_encoder = msgspec.msgpack.Encoder()


class Shard:
    """One owned shard. `mark` is None where the store takes an acknowledgement of each record."""

    def __init__(self, token: int, saved: bytes, *, per_record_ack: bool) -> None:
        self.token = token
        self.closing = False
        self._open: dict[int, Fetched] = {}
        self._before: dict[int, _History] = {}
        self._died = 0
        self._suspect_to = 0
        self.mark: Watermark | None = None
        if per_record_ack:
            return
        state = _decoder.decode(saved) if saved else _Saved(_VERSION, 0, [], [], 0)
        self.mark = Watermark(state.watermark, _positions(state.watermark, state.ahead))
        self._before = {state.watermark + entry.distance: entry for entry in state.history}
        self._died = sum(entry.running for entry in state.history)
        self._suspect_to = state.taken_to

    def take(self, fetched: Fetched) -> bool:
        """Note a record; False when an earlier owner has finished it."""
        mark = self.mark
        if mark is None:
            return True
        at = int(fetched.at)
        is_finished = mark.is_finished(at)
        mark.taken(at)
        if is_finished:
            return False
        before = self._before.pop(at, None)
        if before is not None:
            fetched.starts, fetched.failures, fetched.crashes = before.starts, before.failures, before.crashes
            fetched.died = self._died if before.running else 0
        fetched.suspect = at < self._suspect_to
        self._open[at] = fetched
        return True

    def finish(self, fetched: Fetched) -> None:
        assert self.mark is not None
        self._open.pop(int(fetched.at), None)
        self.mark.finish(int(fetched.at))

    def state(self, *, handed_over: bool) -> tuple[int, bytes]:
        """The watermark and what belongs to it. `handed_over`: nothing of this member runs any more."""
        assert self.mark is not None
        low = self.mark.at
        history = [
            _History(at - low, f.starts, f.failures, f.crashes, f.marked and not handed_over)
            for at, f in sorted(self._open.items())
            if f.starts or f.failures or f.crashes
        ]
        # What an earlier owner left and nobody has taken yet keeps its history.
        history += [
            _History(at - low, entry.starts, entry.failures, entry.crashes, entry.running)
            for at, entry in sorted(self._before.items())
            if at >= low
        ]
        taken_to = low if handed_over else max([at + 1 for at in self._open] + [low, self._suspect_to])
        saved = _Saved(_VERSION, low, _runs(low, self.mark.ahead), history, taken_to)
        return low, _encoder.encode(saved)


class Shards:
    """The owned shards of one inbox; stores outcomes in the way that the store can."""

    def __init__(self, *, per_record_ack: bool) -> None:
        self._per_record_ack = per_record_ack
        self._shards: dict[int, Shard] = {}
        self._saving = asyncio.Lock()

    def gained(self, number: int, token: int, saved: bytes) -> None:
        self._shards[number] = Shard(token, saved, per_record_ack=self._per_record_ack)

    def lost(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._shards.pop(number, None)

    def close(self, numbers: Iterable[int]) -> None:
        """Take nothing more of these."""
        for number in numbers:
            if number in self._shards:
                self._shards[number].closing = True

    def accept(self, batch: Iterable[Fetched]) -> tuple[list[Fetched], list[Fetched]]:
        """Those that belong to an owned shard, and of these the ones that an earlier owner has finished."""
        accepted: list[Fetched] = []
        finished: list[Fetched] = []
        for fetched in batch:
            shard = self._shards.get(fetched.shard)
            if shard is not None and shard.token == fetched.token and not shard.closing:
                (accepted if shard.take(fetched) else finished).append(fetched)
        return accepted, finished

    def owns(self, fetched: Fetched) -> bool:
        """Whether it may be started here."""
        return self._has(fetched) and not self._shards[fetched.shard].closing

    def _has(self, fetched: Fetched) -> bool:
        shard = self._shards.get(fetched.shard)
        return shard is not None and shard.token == fetched.token

    def state(self, number: int) -> bytes:
        """To hand over."""
        shard = self._shards.get(number)
        return b"" if shard is None or shard.mark is None else shard.state(handed_over=True)[1]

    async def settle(
        self, consumer: Consumer, done: Sequence[Fetched], rest: Sequence[Unfinished]
    ) -> Sequence[Fetched]:
        """Store outcomes; returns those refused."""
        if self._per_record_ack:
            return await consumer.settle(done, rest)
        dead = [outcome for outcome in rest if isinstance(outcome, Dead)]
        refused = list(await consumer.settle((), dead)) if dead else []
        gone = {id(fetched) for fetched in refused}
        touched: set[int] = set()
        finished = [*done, *(outcome.fetched for outcome in dead if id(outcome.fetched) not in gone)]
        for fetched in finished:
            shard = self._shards.get(fetched.shard)
            if shard is None or shard.token != fetched.token:
                refused.append(fetched)
                continue
            shard.finish(fetched)
            touched.add(fetched.shard)
        touched.update(outcome.fetched.shard for outcome in rest if isinstance(outcome, Again))
        lost = await self.save(consumer, touched)
        refused.extend(fetched for fetched in finished if fetched.shard in lost)
        return refused

    async def mark(self, consumer: Consumer, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Store running marks; returns those whose shard is lost."""
        if self._per_record_ack:
            return await consumer.start(batch)
        lost = await self.save(consumer, {fetched.shard for fetched in batch})
        return [fetched for fetched in batch if fetched.shard in lost or not self._has(fetched)]

    async def save(self, consumer: Consumer, numbers: Iterable[int]) -> set[int]:
        """Commit, one at a time: an older state must not overtake a newer one. Returns the shards that are
        somebody else's."""
        lost = set()
        async with self._saving:
            for number in numbers:
                shard = self._shards.get(number)
                if shard is None or shard.mark is None:
                    continue
                watermark, state = shard.state(handed_over=False)
                try:
                    await consumer.save(number, watermark, state)
                except LeaseLost:
                    lost.add(number)
        return lost


def _runs(low: int, positions: Sequence[int]) -> list[int]:
    """Rising positions as pairs (distance, length): a long run costs two numbers."""
    runs: list[int] = []
    end = low
    for at in positions:
        if runs and at == end:
            runs[-1] += 1
        else:
            runs += [at - end, 1]
        end = at + 1
    return runs


def _positions(low: int, runs: Sequence[int]) -> list[int]:
    positions: list[int] = []
    end = low
    for distance, length in zip(runs[::2], runs[1::2], strict=True):
        start = end + distance
        positions.extend(range(start, start + length))
        end = start + length
    return positions
