"""Handlers that outlive the ownership of their shard, seen from both ends.

Here they go on when the shard has moved: their outcomes are told to who has it now. There their lanes stay closed until
the outcome is known, or the member that runs them is dead. So a change of owner never starts a second copy, and waits
for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence, Set
from typing import Final

from hivewire.backend import Again, Back, Returned, Unfinished
from hivewire.engine.held import Watcher
from hivewire.engine.outcomes import Outcomes
from hivewire.record import Fetched
from hivewire.rules.lanes import Lane

Place = tuple[int, int]
_UNKNOWN: Final = object()


class Away(Watcher):
    """Of one outcomes. `running` here for others, by the identity of what was fetched; `awaited` from others, by
    place, with the lane that is closed because of it once its record has come."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._held = outcomes.held
        self.running: dict[int, Lane] = {}
        self.awaited: dict[Place, Lane | None] = {}
        self._early: dict[Place, Returned | None] = {}
        self._behind: list[Fetched] = []
        """Delayed ones that may be of a key that is closed: they stand before an awaited record that has not come."""
        outcomes.elsewhere = self.store
        self._held.watchers = (*self._held.watchers, self)

    # -- what runs here

    async def keep(self, lanes: Sequence[Lane]) -> None:
        """These run on while their shard goes: first the store is told, then the lanes are let go."""
        held = [(lane, lane.waiting[0]) for lane in lanes if lane.taken and lane.waiting and not lane.lost]
        if not held:
            return
        await self._held.consumer.hold([fetched for _, fetched in held])
        ended: list[Unfinished] = []
        for lane, fetched in held:
            if lane.taken and not lane.lost and lane.waiting and lane.waiting[0] is fetched:
                self._held.lanes.detach(lane)
                self.running[id(fetched)] = lane
            else:  # what became of it in the meantime is part of the shard's state
                ended.append(Back(fetched))
        if ended:
            await self._held.consumer.settle_held((), ended)

    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """Outcomes of what runs here for others go there, all others the usual way. But for what says that an earlier
        attempt failed, when the next one has begun and runs: it came too late to be stored here, and is in what was
        handed over."""
        running = self.running
        rest = [outcome for outcome in rest if not self._runs(outcome.fetched)]
        mine = [fetched for fetched in done if id(fetched) in running]
        mine_left = [outcome for outcome in rest if id(outcome.fetched) in running]
        others = [fetched for fetched in done if id(fetched) not in running]
        others_left = [outcome for outcome in rest if id(outcome.fetched) not in running]
        refused: list[Fetched] = []
        if mine or mine_left:
            refused += await self._held.consumer.settle_held(mine, mine_left)
            for fetched in (*mine, *(outcome.fetched for outcome in mine_left)):
                running.pop(id(fetched), None)
        if others or others_left:
            refused += await self._outcomes.store_here(others, others_left)
        return refused

    def _runs(self, fetched: Fetched) -> bool:
        """For others, and it has not come to its end."""
        lane = self.running.get(id(fetched))
        return lane is not None and lane.taken and bool(lane.waiting)

    def lost_held(self) -> None:
        """The store has given all that ran here to others."""
        lanes = list(self.running.values())
        self.running.clear()
        for lane in lanes:
            lane.lost = True
        self._held.tell_lost(frozenset(), lanes)

    # -- what runs elsewhere

    def expect(self, shard: int, positions: Collection[int]) -> None:
        self.awaited.update({(shard, at): None for at in positions})

    def lost(self, shards: Set[int], lanes: Sequence[Lane]) -> None:
        """Who has them now waits for what runs elsewhere."""
        for place in [place for place in self.awaited if place[0] in shards]:
            del self.awaited[place]
            self._early.pop(place, None)
        self._behind = [fetched for fetched in self._behind if fetched.shard not in shards]

    def shut(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Close the lanes of those that run elsewhere; returns the rest of the batch. Each is the first of its key:
        what is before it is finished, but for delayed ones, which others overtake."""
        rest: list[Fetched] = []
        for fetched in batch:
            place = (fetched.shard, int(fetched.at))
            if place not in self.awaited:
                (self._behind if self._may_be_behind(fetched) else rest).append(fetched)
                continue
            lane = self.awaited[place] = self._held.lanes.add_closed(fetched)
            early = self._early.pop(place, _UNKNOWN)
            if early is not _UNKNOWN:
                del self.awaited[place]
                self._open(lane, early if isinstance(early, Returned) else None)
        if self._behind:
            rest += [fetched for fetched in self._behind if not self._may_be_behind(fetched)]
            self._behind = [fetched for fetched in self._behind if self._may_be_behind(fetched)]
        return rest

    def _may_be_behind(self, fetched: Fetched) -> bool:
        return bool(fetched.record.due_at) and any(
            lane is None and shard == fetched.shard and at > int(fetched.at)
            for (shard, at), lane in self.awaited.items()
        )

    def returned(self, place: Place, back: Returned | None) -> None:
        """It is finished (None), or to be handled again here."""
        if place not in self.awaited:
            return
        lane = self.awaited[place]
        if lane is None:
            self._early[place] = back
            return
        del self.awaited[place]
        if not lane.lost:
            self._open(lane, back)

    def _open(self, lane: Lane, back: Returned | None) -> None:
        outcomes, fetched = self._outcomes, lane.waiting[0]
        if back is None:
            fetched.seen = True  # counted where it was handled
            self._held.remembered.add(fetched, self._held.now)
            outcomes.done(lane)
            if lane.waiting:
                outcomes.again_now(lane)
            return
        fetched.starts = max(fetched.starts, back.starts)
        fetched.failures = max(fetched.failures, back.failures)
        fetched.crashes = max(fetched.crashes, back.crashes)
        fetched.died, fetched.suspect = back.died, back.suspect
        delay_s = max(0.0, back.due_at - self._held.core.backend.now())
        outcomes.settling.add(Again(fetched, delay_s))
        asyncio.get_running_loop().call_later(delay_s, outcomes.again_now, lane)
