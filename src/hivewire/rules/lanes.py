"""Which record of which key comes next, within one member."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from hivewire.record import Fetched, lane_of
from hivewire.rules.priority import Lines

LONG_LANE = 64
"""A blocked lane keeps so many bodies; of what comes behind them only the positions."""


class Lane(msgspec.Struct, eq=False, gc=False):
    """The records of one key that this member holds, oldest first. The first may be running.

    `taken`: a taker has it. `blocked`: its first record waits for another attempt. `ending`: the shard is
    being given up. `halted`: nothing more may start, because it is ending or its shard rests. `lost`:
    somebody else owns the records by now; nothing here counts any more. `parked`: positions of records
    whose bodies were dropped, all behind `waiting`.
    `away`: its shard has moved while its first record runs, and nothing else is in it.
    `grip` changes whenever the lane goes to a taker or from it: so a taker knows whether it still has it.
    """

    key: str
    shard: int
    waiting: deque[Fetched] = msgspec.field(default_factory=deque)
    parked: deque[int | str] | tuple[()] = ()
    grip: int = 0
    taken: bool = False
    blocked: bool = False
    ending: bool = False
    halted: bool = False
    lost: bool = False
    away: bool = False

    @property
    def may_go_on(self) -> bool:
        """Whether its taker may start the first record."""
        return bool(self.waiting) and not (self.lost or self.blocked or self.halted)

    def put_behind(self, fetched: Fetched) -> None:
        """Behind what is parked or holds up the rest; a long lane keeps no more bodies."""
        if self.parked or len(self.waiting) >= LONG_LANE:
            parked = self.parked = self.parked or deque()
            parked.append(fetched.at)
        else:
            self.waiting.append(fetched)


def _priority(lane: Lane) -> int:
    return lane.waiting[0].record.priority


_NO_SHARDS: Final[frozenset[int]] = frozenset()


class Lanes:
    """A lane is here while it holds records. It is in `ready` while nobody works on it or waits for it, unless
    its shard rests: then it is put aside.

    One key, one lane, one at a time: `next_lane` hands a lane to exactly one taker, who gives it back
    with `finished` (its first record is done) or `remove`.
    """

    __slots__ = ("_aside", "_lanes", "_resting", "competing", "ready")

    def __init__(self, *, competing: bool = False, by_priority: bool = False) -> None:
        """`by_priority`: the lanes were not chosen by their priority before they came here."""
        self.competing = competing
        self.ready: deque[Lane] | Lines[Lane] | tuple[()] = Lines(_priority) if by_priority else ()
        """The tuple while nothing is: so it is with most of many agents, and an empty deque takes 760 bytes."""
        self._lanes: dict[str, Lane] = {}
        self._resting = _NO_SHARDS
        self._aside: Sequence[Lane] = ()

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def held(self) -> int:
        """Records in all lanes."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def active(self) -> int:
        """Records that could be handled: those of blocked lanes do not count."""
        return sum(len(lane.waiting) for lane in self._lanes.values() if not lane.blocked)

    def add(self, batch: Iterable[Fetched]) -> None:
        lanes, competing = self._lanes, self.competing
        last: str | None = None
        put: Callable[[Fetched], object]
        for fetched in batch:
            record = fetched.record
            key = lane_of(record, competing=True) if competing else record.key
            if key != last:  # runs of one key are common
                last, lane = key, lanes.get(key)
                if lane is None:
                    lane = lanes[key] = Lane(key, fetched.shard)
                    lane.waiting.append(fetched)
                    lane.halted = fetched.shard in self._resting
                    self._make_ready(lane)
                    put = lane.waiting.append
                    continue
                put = lane.put_behind if lane.parked or lane.blocked else lane.waiting.append
            put(fetched)

    def add_closed(self, fetched: Fetched) -> Lane:
        """The first record of its key, which runs at another member: its lane is blocked. It may be behind another such
        one, whose handler has ended."""
        key = lane_of(fetched.record, competing=self.competing)
        lane = self._lanes.get(key)
        if lane is not None:
            lane.waiting.append(fetched)
            return lane
        lane = self._lanes[key] = Lane(key, fetched.shard)
        lane.halted = fetched.shard in self._resting
        lane.blocked = True
        lane.waiting.append(fetched)
        return lane

    def detach(self, lane: Lane) -> None:
        """Its taker goes on with the first record, which is all that is left of it; its key is free for another
        lane."""
        lane.away = lane.halted = True
        first = lane.waiting[0]
        lane.waiting.clear()
        lane.waiting.append(first)
        lane.parked = ()
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def _make_ready(self, lane: Lane) -> None:
        if lane.halted:
            self._aside = [*self._aside, lane]
        elif isinstance(self.ready, tuple):
            self.ready = deque((lane,))
        else:
            self.ready.append(lane)

    def next_lane(self) -> Lane | None:
        ready = self.ready
        if isinstance(ready, tuple):
            return None
        while ready:
            lane = ready.popleft()
            if not lane.lost:
                lane.taken = True
                lane.grip += 1
                return lane
        if type(ready) is deque:
            self.ready = ()
        return None

    def finished(self, lane: Lane) -> bool:
        """The first record of a taken lane is done with. True: the lane has another one; the taker still
        has it. False: it was the last, and the lane is gone unless records are parked."""
        waiting = lane.waiting
        waiting.popleft()
        if waiting:
            return True
        if not lane.parked:
            self.remove(lane)
        return False

    def resume(self, lane: Lane) -> None:
        """The taker puts the lane back; others go first."""
        lane.taken = False
        lane.grip += 1
        if lane.ending:
            self.remove(lane)
        elif not lane.lost and not lane.blocked:
            self._make_ready(lane)

    def put_first(self, lane: Lane) -> None:
        """The taker puts the lane back; it is the next."""
        lane.taken = False
        lane.grip += 1
        if lane.halted or isinstance(self.ready, tuple):
            self._make_ready(lane)
        else:
            self.ready.appendleft(lane)

    def block(self, lane: Lane) -> None:
        """Its first record waits for another attempt."""
        lane.taken = False
        lane.grip += 1
        lane.blocked = True
        if lane.ending:
            self.remove(lane)

    def unblock(self, lane: Lane) -> bool:
        """The time has come. False: the lane is not here any more."""
        lane.blocked = False
        if lane.lost or self._lanes.get(lane.key) is not lane:
            return False
        self._make_ready(lane)
        return True

    def rest(self, shards: Iterable[int]) -> None:
        """Start nothing more of these shards, but keep all: see `go_on` and `end`."""
        self._resting |= set(shards)
        for lane in self._lanes.values():
            if lane.shard in self._resting:
                lane.halted = True
        ready = list(self.ready)
        self._aside = [*self._aside, *(lane for lane in ready if lane.halted)]
        if not isinstance(self.ready, tuple):
            self.ready.clear()
        self._all_ready(lane for lane in ready if not lane.halted)

    def go_on(self, shards: Iterable[int]) -> None:
        """These rest no longer."""
        self._resting -= set(shards)
        for lane in self._lanes.values():
            lane.halted = lane.ending or lane.shard in self._resting
        self._all_ready(lane for lane in self._aside if not lane.halted)
        self._aside = [lane for lane in self._aside if lane.halted]

    def _all_ready(self, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            self._make_ready(lane)

    def _forget_rest(self, shards: set[int]) -> None:
        self._resting -= shards
        self._aside = [lane for lane in self._aside if lane.shard not in shards]

    def end(self, shards: Iterable[int]) -> list[Lane]:
        """Start nothing more of these shards: forget their lanes but for those that are taken, which are
        returned."""
        gone = set(shards)
        self._forget_rest(gone)
        taken = []
        for lane in [lane for lane in self._lanes.values() if lane.shard in gone]:
            if lane.taken:
                lane.ending = lane.halted = True
                taken.append(lane)
            else:
                lane.lost = True
                self.remove(lane)
        return taken

    def busy(self) -> set[int]:
        """Shards of lanes that somebody works on."""
        return {lane.shard for lane in self._lanes.values() if lane.taken}

    def remove(self, lane: Lane) -> None:
        """Forget the lane and all it still holds."""
        lane.taken = False
        lane.grip += 1
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def lose(self, shards: Iterable[int]) -> list[Lane]:
        """The shards are with somebody else: forget their lanes."""
        gone = set(shards)
        self._forget_rest(gone)
        lanes = [lane for lane in self._lanes.values() if lane.shard in gone]
        for lane in lanes:
            lane.lost = True
            self.remove(lane)
        return lanes

    def take_back(self, keep_shard: int | None = None) -> list[Lane]:
        """Remove all lanes that nobody works on, to give them back; those of one shard may stay."""
        self.go_on(set(self._resting))
        kept, lanes = [], []
        while (lane := self.next_lane()) is not None:
            if lane.shard == keep_shard:
                kept.append(lane)
            else:
                self.remove(lane)
                lanes.append(lane)
        self._all_ready(kept)
        return lanes
