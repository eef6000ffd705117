"""Which record of which key comes next, within one member."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hivewire.record import Fetched


class Lane:
    """The records of one key that this member holds, oldest first. The first may be running.

    `lost`: somebody else owns them by now; nothing here counts any more.
    """

    __slots__ = ("key", "lost", "shard", "waiting")

    def __init__(self, key: str, shard: int) -> None:
        self.key = key
        self.shard = shard
        self.waiting: deque[Fetched] = deque()
        self.lost = False


class Lanes:
    """A lane is here while it holds records. It is in `ready` while nobody works on it or waits for it.

    One key, one lane, one at a time: `next_lane` hands a lane to exactly one taker, who gives it back
    with `finished` (its first record is done) or `remove`.
    """

    def __init__(self, *, competing: bool = False) -> None:
        self.competing = competing
        self.ready: deque[Lane] = deque()
        self._lanes: dict[str, Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def held(self) -> int:
        """Records in all lanes."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def add(self, batch: Iterable[Fetched]) -> None:
        lanes, competing = self._lanes, self.competing
        for fetched in batch:
            record = fetched.record
            key = record.id if competing else record.key
            lane = lanes.get(key)
            if lane is None:
                lane = lanes[key] = Lane(key, fetched.shard)
                self.ready.append(lane)
            lane.waiting.append(fetched)

    def next_lane(self) -> Lane | None:
        ready = self.ready
        while ready:
            lane = ready.popleft()
            if not lane.lost:
                return lane
        return None

    def finished(self, lane: Lane) -> bool:
        """The first record of a taken lane is done with. True: the lane has another one; the taker still
        has it. False: it was the last, the lane is gone."""
        lane.waiting.popleft()
        if lane.waiting:
            return True
        self.remove(lane)
        return False

    def resume(self, lane: Lane) -> None:
        """The taker puts the lane back; others go first."""
        if not lane.lost:
            self.ready.append(lane)

    def remove(self, lane: Lane) -> None:
        """Forget the lane and all it still holds."""
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def lose(self, shards: Iterable[int]) -> list[Lane]:
        """The shards are with somebody else: forget their lanes."""
        gone = set(shards)
        lanes = [lane for lane in self._lanes.values() if lane.shard in gone]
        for lane in lanes:
            lane.lost = True
            self.remove(lane)
        return lanes

    def take_back(self, keep_shard: int | None = None) -> list[Lane]:
        """Remove all lanes that nobody works on, to give them back; those of one shard may stay."""
        kept, lanes = [], []
        while (lane := self.next_lane()) is not None:
            if lane.shard == keep_shard:
                kept.append(lane)
            else:
                self.remove(lane)
                lanes.append(lane)
        self.ready.extend(kept)
        return lanes
