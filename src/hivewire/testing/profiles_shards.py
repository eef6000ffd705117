"""What the simulated stores with owned shards have in common: members, leases, fair shares and moves."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from random import Random
from typing import Final, TypeVar

import msgspec

from hivewire.backend import Depth, Fetched, Member, Ownership, Saved, Unfinished
from hivewire.errors import ConnectionLost
from hivewire.testing.profiles_driver import ProfileBackend, ProfileConsumer, process_of, settling
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.profiles_world import Happening, World

HANDOVER_S: Final = 30.0
"""How long a member may take to give up a shard; handlers of the seeded programs are shorter."""


class Shard(msgspec.Struct):
    """Who owns a shard, by which fencing token, and where it goes next."""

    owner: str = ""
    token: int = 0
    saved: bytes = b""
    watermark: int = 0
    goes_to: str = ""


class Group(msgspec.Struct):
    """The members of one queue and their shards."""

    shards: list[Shard]
    members: dict[str, float] = {}
    """Until when each member's lease lasts."""


class Shares(msgspec.Struct, frozen=True):
    """The answer to a heartbeat: the shards of this member with their tokens and saved states, and those
    that it must give up."""

    held: Mapping[int, tuple[int, bytes, int]]
    give_up: Sequence[int]


class ShardWorld(World):
    """The server side of shard ownership."""

    def __init__(self, faults: Faults, chance: Random) -> None:
        super().__init__(faults, chance)
        self.groups: dict[str, Group] = {}

    def group(self, queue: str) -> Group:
        group = self.groups.get(queue)
        if group is None:
            group = self.groups[queue] = Group([Shard() for _ in range(self.specs[queue].shards)])
        return group

    # Members

    def beat(self, queue: str, process: str, lease_s: float, *, begins: bool) -> Shares:
        """The member is alive: renew all that it holds, and share out. `begins`: what it held before is
        somebody else's."""
        group = self.group(queue)
        self._bury_members(queue)
        is_new = begins or process not in group.members
        if begins and process in group.members:
            self._bury(queue, process)
        group.members[process] = self.now() + lease_s
        if is_new:
            self._balance(group)
        if not all(shard.owner for shard in group.shards):
            self._share_out(group, process)
        held = {
            number: (shard.token, shard.saved, shard.watermark)
            for number, shard in enumerate(group.shards)
            if shard.owner == process
        }
        return Shares(held, [number for number in held if group.shards[number].goes_to])

    def _share_out(self, group: Group, process: str) -> None:
        """What nobody owns, as much as this member may have."""
        count, quota = self._counts(group)[process], self._quota(group)
        for shard in group.shards:
            if not shard.owner and shard.goes_to in ("", process):
                if not shard.goes_to:
                    if count >= quota:
                        continue
                    count += 1
                shard.owner, shard.token, shard.goes_to = process, self.next_number(), ""

    def _quota(self, group: Group) -> int:
        return -(-len(group.shards) // max(1, len(group.members)))

    def _counts(self, group: Group) -> Counter[str]:
        """How many shards each will have when all moves are over."""
        return Counter(shard.goes_to or shard.owner for shard in group.shards)

    def _balance(self, group: Group) -> None:
        """Mark shards that must move so that nobody has more than a fair share."""
        quota, counts, members = self._quota(group), self._counts(group), sorted(group.members)
        for process in members:
            surplus = counts[process] - quota
            for shard in group.shards:
                if surplus <= 0:
                    break
                if shard.owner == process and not shard.goes_to:
                    shard.goes_to = min(members, key=counts.__getitem__)
                    counts[process] -= 1
                    counts[shard.goes_to] += 1
                    surplus -= 1

    def move_some(self, process: str) -> None:
        """A rebalance that nobody asked for: about half of what the member owns must go to others."""
        for queue, group in self.groups.items():
            others = sorted(name for name in group.members if process_of(name) != process)
            mine = [shard for shard in group.shards if process_of(shard.owner) == process and not shard.goes_to]
            if others and mine:
                for shard in self.chance.sample(mine, (len(mine) + 1) // 2):
                    shard.goes_to = self.chance.choice(others)
                self.ring(queue)

    def release(self, queue: str, process: str, saved: Mapping[int, tuple[int, Saved | None]]) -> None:
        """Give up shards, each with its token and the state to keep for the next owner."""
        group = self.group(queue)
        self._bury_members(queue)
        for number, (token, state) in saved.items():
            shard = group.shards[number]
            if shard.owner == process and shard.token == token:
                if state is not None:
                    shard.saved = state.state
                    self.committed(queue, process, number, state.watermark)
                shard.owner = ""
                self.released(queue, number)
        self.ring(queue)

    def leave(self, queue: str, process: str) -> None:
        """The member goes for good; what it still holds is free at once."""
        group = self.group(queue)
        group.members.pop(process, None)
        for number, shard in enumerate(group.shards):
            if shard.goes_to == process:
                shard.goes_to = ""
            if shard.owner == process:
                shard.owner = ""
                self.released(queue, number)
        self.ring(queue)

    def _bury_members(self, queue: str) -> None:
        group, now = self.group(queue), self.now()
        for process, until in list(group.members.items()):
            if until <= now:
                self._bury(queue, process)

    def _bury(self, queue: str, process: str) -> None:
        group = self.group(queue)
        del group.members[process]
        for number, shard in enumerate(group.shards):
            if shard.goes_to == process:
                shard.goes_to = ""
            if shard.owner == process:
                shard.owner = shard.goes_to = ""
                self.inherited(queue, number)
        self.ring(queue)

    def owns(self, process: str, queue: str, key: str) -> bool:
        shard = self.group(queue).shards[self.shard_of(queue, key)]
        return process_of(shard.owner) == process and self.group(queue).members.get(shard.owner, 0.0) > self.now()

    def is_fenced_out(self, queue: str, process: str, number: int, token: int) -> bool:
        """True if this token is not the shard's present one."""
        self._bury_members(queue)
        shard = self.group(queue).shards[number]
        return shard.owner != process or shard.token != token

    def save(self, queue: str, process: str, number: int, token: int, saved: Saved) -> bool:
        """Store the shard's state. False: refused by the fence."""
        if self.is_fenced_out(queue, process, number, token):
            return False
        shard = self.group(queue).shards[number]
        if (shard.owner, shard.token) != (process, token):
            # What the fence is for, looked at once more by itself.
            self.history.append(Happening(self.loop.time(), "usurped", queue, "", 0, process, f"{queue} {number}"))
        shard.saved = saved.state
        self.committed(queue, process, number, saved.watermark)
        return True

    def settled_lately(self, queue: str, number: int) -> Sequence[Hashable]:
        """The lives of the shard that were settled lately, for an engine that must remember them itself."""
        return ()

    def next_due(self, queue: str) -> float | None:
        return min((until for until in self.group(queue).members.values() if until > self.now()), default=None)

    def forget(self, queue: str) -> None:
        self.groups.pop(queue, None)

    # What the kinds of stores do differently

    @abstractmethod
    def released(self, queue: str, number: int) -> None:
        """The owner gave the shard up in peace."""

    @abstractmethod
    def inherited(self, queue: str, number: int) -> None:
        """The owner of the shard died."""

    @abstractmethod
    def committed(self, queue: str, process: str, number: int, watermark: int) -> None:
        """Everything below the watermark is finished."""

    @abstractmethod
    def newest(self, queue: str, number: int) -> int:
        """The position of the shard's last record; -1 if there is none."""

    @abstractmethod
    def read(self, queue: str, number: int, token: int, after: int, limit: int, lanes: int, run: int) -> list[Fetched]:
        """Records of the shard from the position `after` + 1 on; consumes nothing."""

    @abstractmethod
    def again(self, queue: str, positions: Iterable[tuple[int, int, int]]) -> list[Fetched]:
        """The records at these (shard, token, position)."""

    @abstractmethod
    def start(self, queue: str, process: str, batch: Sequence[Fetched]) -> list[Fetched]: ...

    @abstractmethod
    def settle(
        self, queue: str, process: str, done: Sequence[Fetched], rest: Sequence[Unfinished]
    ) -> list[Fetched]: ...

    @abstractmethod
    def depth(self, queue: str) -> Depth: ...


_W = TypeVar("_W", bound=ShardWorld)


class ShardConsumer(ProfileConsumer[_W]):
    """A member that owns whole shards and reads them with its own cursors."""

    def __init__(self, backend: ProfileBackend[_W], queue: str, member: Member, owner: Ownership) -> None:
        super().__init__(backend, queue, member, owner)
        self._is_member = False
        self._tokens: dict[int, int] = {}
        self._cursors: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._released: dict[int, int] = {}
        """The last token of each shard that was given up: an answer that is older than that still names it."""
        self._handovers: dict[asyncio.Task[None], set[int]] = {}

    # Ownership

    async def _tick(self) -> None:
        self._check_lease()
        sent_at = self.world.loop.time()
        begins = not self._is_member
        shares = await self.wire.call(
            ("renew",), lambda: self.world.beat(self.queue, self.name, self.member.lease_s, begins=begins)
        )
        if not begins and self.is_late():
            self._give_up()  # the answer came when `holds` had said no already
            return
        self._is_member = True
        self.safe_until = sent_at + self.member.lease_s
        self._forget(
            {
                number
                for number, token in self._tokens.items()
                if number not in shares.held or shares.held[number][0] != token
            }
        )
        for number, (token, saved, watermark) in shares.held.items():
            if number not in self._tokens and token > self._released.get(number, -1):
                self._tokens[number] = token
                self._cursors[number] = watermark - 1
                await self._gain(number, token, saved, watermark)
                self.world.ring(self.queue)  # a fetch may be waiting for it
        asked = {number for number in shares.give_up if number in self._tokens and number not in self._leaving}
        if asked:
            self._leaving |= asked
            task = asyncio.get_running_loop().create_task(self._hand_over(asked))
            self._handovers[task] = asked
            task.add_done_callback(self._handovers.pop)

    async def _gain(self, number: int, token: int, saved: bytes, watermark: int) -> None:
        await self.owner.gained(number, token, saved, self.world.settled_lately(self.queue, number))

    async def _come_to_rest(self, shards: set[int]) -> Mapping[int, Saved]:
        return await self.owner.losing(shards, HANDOVER_S)

    async def _hand_over(self, shards: set[int]) -> None:
        tokens = {number: self._tokens[number] for number in shards}
        states = await self._come_to_rest(shards)
        saved = {number: (token, states.get(number)) for number, token in tokens.items()}
        while True:
            try:
                await self.wire.call(("release",), lambda: self.world.release(self.queue, self.name, saved))
                break
            except ConnectionLost:
                await self.world.loop.pause(self.member.lease_s / 4)
        for number, token in tokens.items():
            self._released[number] = token
            if self._tokens.get(number) == token:
                del self._tokens[number]
            self._leaving.discard(number)

    def _forget(self, shards: set[int]) -> None:
        if shards:
            for task, giving in list(self._handovers.items()):
                if giving & shards:  # nothing is left to hand over
                    task.cancel()
            for number in shards:
                del self._tokens[number]
                self._leaving.discard(number)
            self.owner.lost(shards)

    def _give_up(self) -> None:
        self._is_member = False
        self._kept.clear()
        self._forget(set(self._tokens))

    def _is_held(self, fetched: Fetched) -> bool:
        return self._tokens.get(fetched.shard) == fetched.token

    # Records

    def _finds_some(self) -> bool:
        return any(
            number not in self._leaving and self.world.newest(self.queue, number) > self._cursors[number]
            for number in self._tokens
        )

    def _take(self, limit: int, lanes: int, run: int, starting: int) -> list[Fetched]:
        taken: list[Fetched] = []
        for number, token in self._tokens.items():
            if number in self._leaving or len(taken) >= limit:
                continue
            found = self.world.read(self.queue, number, token, self._cursors[number], limit - len(taken), lanes, run)
            for fetched in found:
                assert isinstance(fetched.at, int)
                self._cursors[number] = fetched.at
            taken.extend(found)
        return taken

    async def refetch(self, shard: int, at: Sequence[int | str]) -> Sequence[Fetched]:
        token = self._tokens.get(shard)
        wanted = [] if token is None else [(shard, token, int(place)) for place in at]
        return await self.wire.call((), lambda: self.world.again(self.queue, wanted))

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        return await self.wire.call(
            ("start",), lambda: self.world.start(self.queue, self.name, batch), weight=len(batch)
        )

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return await self.wire.call(
            settling(rest),
            lambda: self.world.settle(self.queue, self.name, done, rest),
            weight=len(done) + len(rest),
        )

    async def save(self, shards: Mapping[int, Saved]) -> Set[int]:
        sent = {number: (self._tokens.get(number, -1), saved) for number, saved in shards.items()}
        refused = await self.wire.call(
            ("save",),
            lambda: {
                number
                for number, (token, saved) in sent.items()
                if not self.world.save(self.queue, self.name, number, token, saved)
            },
            weight=len(sent),
        )
        self._forget({number for number in refused if self._tokens.get(number) == sent[number][0]})
        return refused

    async def _leave(self) -> None:
        if self._handovers:
            await asyncio.gather(*self._handovers, return_exceptions=True)
        held = set(self._tokens)
        if held:
            self._leaving |= held
            await self._hand_over(held)
        await self.wire.call(("leave",), lambda: self.world.leave(self.queue, self.name))
