"""Handlers that outlive the ownership of their shard, seen from both ends.

Here they go on when the shard has moved: their outcomes are told to who has it now. There their lanes stay closed until
the outcome is known, or the member that runs them is dead. So a change of owner never starts a second copy, and waits
for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Sequence, Set

from hivewire.backend import Again, Back, Returned, Unfinished
from hivewire.engine.held import Watcher
from hivewire.engine.outcomes import Elsewhere, Outcomes
from hivewire.record import Fetched, lane_of
from hivewire.rules.lanes import Lane

Place = tuple[int, int]


class Away(Watcher, Elsewhere):
    """Of one outcomes. `running` here for others, or at its end when its shard went, by the identity of what was
    fetched; `awaited` from others, by place, with the lane that is closed because of it once its record has come."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._held = outcomes.held
        self.running: dict[int, Lane] = {}
        self.awaited: dict[Place, Lane | None] = {}
        self._back: dict[Place, Returned | None] = {}
        """What has become of those in `awaited` that run no more."""
        self._behind: list[Fetched] = []
        """Delayed ones that may be of a key that is closed, as they stand before an awaited record that has not come;
        and what follows them in their keys."""
        outcomes.elsewhere = self
        self._held.watchers = (*self._held.watchers, self)

    # -- what runs here

    async def keep(self, lanes: Sequence[Lane], unsettled: Sequence[Fetched] = ()) -> None:
        """These run on while their shard goes, and these are at their end, but nobody knows whether it is stored: first
        the store is told, then the lanes are let go. So the next owner begins none of them, and what is said of them
        here is true, whichever way it gets there."""
        held = [(lane.waiting[0], lane) for lane in lanes if lane.taken and lane.waiting and not lane.lost]
        fresh = [fetched for fetched in unsettled if id(fetched) not in self.running]
        held += [(one, Lane(one.record.key, one.shard, deque((one,)), away=True)) for one in fresh]
        if not held:
            return
        await self._held.consumer.hold([fetched for fetched, _ in held])
        on_their_way = {id(fetched) for fetched in self._outcomes.settling.unsettled()}
        ended: list[tuple[Fetched, Lane]] = []
        for fetched, lane in held:
            if lane.taken and not lane.lost and lane.waiting and lane.waiting[0] is fetched:
                self._held.lanes.detach(lane)
                self.running[id(fetched)] = lane
            elif id(fetched) in on_their_way:
                self.running[id(fetched)] = lane
            else:  # what became of it in the meantime is part of the shard's state
                ended.append((fetched, lane))
        if ended:
            await self._take_back(ended)

    async def _take_back(self, ended: Sequence[tuple[Fetched, Lane]]) -> None:
        """They do not run here after all. Else their next owner would wait for them for as long as this process lives:
        if it cannot be said now, it is tried again as that of an outcome is."""
        try:
            await self._held.consumer.settle_held((), [Back(fetched) for fetched, _ in ended])
        except BaseException:
            for fetched, lane in ended:
                self.running[id(fetched)] = lane
                self._outcomes.settling.add(Back(fetched))
            raise

    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """Outcomes of what runs here for others go there, all others the usual way, and first: should that fail, all is
        tried again, and what was told is known here no more."""
        if not self.running:
            return await self.overtaken(done, rest, await self._outcomes.store_here(done, rest))
        mine, mine_left, others, others_left = self._parted(done, rest)
        here = await self._outcomes.store_here(others, others_left) if others or others_left else ()
        every = [*mine, *(outcome.fetched for outcome in mine_left)]
        lost = [fetched for fetched in every if id(fetched) not in self.running]
        return [*lost, *await self.overtaken(done, rest, here)]

    async def overtaken(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Sequence[Fetched]
    ) -> Sequence[Fetched]:
        if not self.running:
            return refused
        mine, mine_left, *_ = self._parted(done, rest)
        told = {id(fetched) for fetched in (*mine, *(outcome.fetched for outcome in mine_left))}
        there = await self._tell(mine, mine_left)
        return [*(fetched for fetched in refused if id(fetched) not in told), *there]

    def _parted(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished]
    ) -> tuple[list[Fetched], list[Unfinished], list[Fetched], list[Unfinished]]:
        """Those of what is kept here for others, and all others. But for what says that an earlier attempt failed, when
        the next one runs or has come to its end: it came too late to be stored here, and is in what was handed over."""
        running, noted = self.running, self._outcomes.settling.noted()
        ended = running.keys() & noted
        rest = [one for one in rest if id(one.fetched) not in ended and not self._runs(one.fetched)]
        return (
            [fetched for fetched in done if id(fetched) in running],
            [outcome for outcome in rest if id(outcome.fetched) in running],
            [fetched for fetched in done if id(fetched) not in running],
            [outcome for outcome in rest if id(outcome.fetched) not in running],
        )

    async def _tell(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        if not (done or rest):
            return ()
        refused = await self._held.consumer.settle_held(done, rest)
        for fetched in (*done, *(outcome.fetched for outcome in rest)):
            self.running.pop(id(fetched), None)
        return refused

    def _runs(self, fetched: Fetched) -> bool:
        """For others, and it has not come to its end."""
        lane = self.running.get(id(fetched))
        return lane is not None and lane.taken and bool(lane.waiting) and lane.waiting[0] is fetched

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
            self._back.pop(place, None)
        self._behind = [fetched for fetched in self._behind if fetched.shard not in shards]

    def shut(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Close the lanes of those that run elsewhere; returns the rest of the batch. Of each key they are the first:
        what is before them is finished, but for delayed ones, which others overtake."""
        lanes, rest, keys = self._held.lanes, [], set[str]()
        for fetched in batch:
            if _place(fetched) in self.awaited:
                self.awaited[_place(fetched)] = lanes.add_closed(fetched)
        behind, self._behind = self._behind, []
        for fetched in (*behind, *(fetched for fetched in batch if _place(fetched) not in self.awaited)):
            key = lane_of(fetched.record, competing=lanes.competing)
            if key in keys or self._may_be_behind(fetched):
                keys.add(key)
                self._behind.append(fetched)
            else:
                rest.append(fetched)
        self._open_all()
        return rest

    def _may_be_behind(self, fetched: Fetched) -> bool:
        return bool(fetched.record.due_at) and any(
            lane is None and shard == fetched.shard and at > int(fetched.at)
            for (shard, at), lane in self.awaited.items()
        )

    def returned(self, place: Place, back: Returned | None) -> None:
        """It is finished (None), or to be handled again here."""
        if place in self.awaited:
            self._back[place] = back
            self._open_all()

    def _open_all(self) -> None:
        """Go on with each lane as far as what has come back allows."""
        if not self._back:
            return
        still = [(place, lane) for place, lane in self.awaited.items() if place not in self._back or lane is None]
        unknown = {place[0] for place, lane in still if lane is None}
        running = {id(lane) for _, lane in still if lane is not None}
        for place in list(self._back):
            lane = self.awaited.get(place)
            if lane is not None and not lane.lost:
                self._open(lane, lane.shard in unknown or id(lane) in running)

    def _open(self, lane: Lane, is_followed: bool) -> None:
        """`is_followed`: another one of the lane still runs elsewhere, or one may be of it that has not come."""
        while lane.waiting:
            fetched = lane.waiting[0]
            place = _place(fetched)
            if place not in self.awaited:
                self._outcomes.again_now(lane)
                return
            if place not in self._back:
                return
            if self._back[place] is None:
                self._bring_back(fetched)
                self._outcomes.done(lane)
            elif is_followed:
                return
            else:
                self._again(lane)
                return

    def _again(self, lane: Lane) -> None:
        """All of its lane are back, and its first is to be handled here."""
        outcomes, first = self._outcomes, lane.waiting[0]
        due_at = self._bring_back(first)
        for fetched in lane.waiting:
            if _place(fetched) in self._back:
                self._bring_back(fetched)
        delay_s = max(0.0, due_at - self._held.core.backend.now())
        outcomes.settling.add(Again(first, delay_s))
        asyncio.get_running_loop().call_later(delay_s, outcomes.again_now, lane)

    def _bring_back(self, fetched: Fetched) -> float:
        """Note what it brings; when it may be handled again."""
        place = _place(fetched)
        del self.awaited[place]
        back = self._back.pop(place)
        if back is None:
            fetched.seen = True  # counted where it was handled
            self._held.remembered.add(fetched, self._held.now)
            return 0.0
        fetched.starts = max(fetched.starts, back.starts)
        fetched.failures = max(fetched.failures, back.failures)
        fetched.crashes = max(fetched.crashes, back.crashes)
        fetched.died, fetched.suspect = back.died, back.suspect
        return back.due_at


def _place(fetched: Fetched) -> Place:
    return fetched.shard, int(fetched.at)
