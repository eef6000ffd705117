"""One member's part of a competing queue: the entries that the group has given it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hivewire.backend import Again, Dead, Fetched, Ownership, QueueSpec, Unfinished
from hivewire.backends.redis import competing, scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keeper import Seat, Shares
from hivewire.backends.redis.keys import EPOCH, INLET_BELL
from hivewire.backends.redis.link import good
from hivewire.backends.redis.member import RedisMember
from hivewire.backends.redis.packing import life_of, pack_dead, pack_state
from hivewire.backends.redis.reading import LOOK_RARER, entry_id, read, remember
from hivewire.backends.redis.standing import Standing
from hivewire.backends.redis.waiting import News
from hivewire.rules import priority as priorities

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend


class Claim(Standing):
    """The lease of one member; all that is pending with it in the group is held under its token."""

    def __init__(
        self, backend: RedisBackend, queue: str, seat: Seat, owner: Ownership, news: Callable[[], None]
    ) -> None:
        super().__init__(backend, queue, seat, owner, news)
        self.token = 0
        self.out: dict[str, bool] = {}
        """Positions of what was taken and is not settled, and whether the server may have counters of it."""

    def lapsed(self) -> None:
        self.token = 0
        self.out.clear()
        self._owner.lost({0})

    def forget(self) -> None:
        self.out.clear()

    async def _apply(self, shares: Shares) -> None:
        token = shares.held.get(0, 0)
        if token != self.token:
            if self.token:
                self.lapsed()
            self.token = token
            self._news()


class PoolConsumer(RedisMember):
    """Takes no more than it was asked for, so that an idle member finds what others have not begun."""

    _leave: ClassVar[str] = competing.LEAVE

    def __init__(self, backend: RedisBackend, spec: QueueSpec, seat: Seat, owner: Ownership) -> None:
        super().__init__(backend, spec, seat)
        self._news = News()
        self._is_hot = True
        self._unsure = False
        """Entries may be pending here whose names were lost with an answer."""
        self.claim = Claim(backend, spec.name, seat, owner, self._look_again)
        self.standing = self.claim
        self.claim.on_late = self._late.due_in
        self._taking = asyncio.Lock()
        self._turns = priorities.Shares()

    async def begin(self) -> None:
        await self.backend.ears.subscribe(self.names.news, self._heard)
        await self.backend.ears.subscribe(self.names.bell, self._heard)
        await self.claim.begin()

    def holds(self, fetched: Fetched) -> bool:
        return self.claim.in_time() and self.claim.token == fetched.token and str(fetched.at) in self.claim.out

    def _heard(self, what: bytes | None) -> None:
        for part in (b"w",) if what is None else what.split(b","):
            if part == b"*":
                self._late.due_in(0.0)
            elif part == INLET_BELL:
                self.backend.inlet_news()
            elif part != b"m":
                self._look_again()

    def rewind(self) -> None:
        self._unsure = True
        self._look_again()

    def _look_again(self) -> None:
        self._is_hot = True
        self._news.tell()

    # -- taking

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        room = min(limit, lanes) if run > 0 else 0
        if self._closed or room <= 0:
            return ()
        loop = asyncio.get_running_loop()
        until, look_s = loop.time() + wait_s, self.backend.settings.redis.block_timeout_s
        most_s = LOOK_RARER * look_s
        if wait_s <= 0:
            self._is_hot = True
        while True:
            self._news.is_there = False
            if self._is_hot:
                taken = await self._take(room)
                if taken:
                    return taken
            left = until - loop.time()
            if left <= 0 or self._closed:
                return ()
            if not await self._news.wait(min(left, look_s)):
                look_s = min(2 * look_s, most_s)
                self._is_hot = True

    async def _take(self, room: int) -> Sequence[Fetched]:
        """What is taken is known here, or `_unsure` says that it is not, whatever happens in between."""
        claim = self.claim
        async with self._taking:
            if self._unsure:
                await self._give_back_unknown()
            self._is_hot, self._unsure = False, True
            turns = Counter(self._turns.plan(room)).items()
            wanted = [part for priority, number in turns for part in (10 - priority, number)]
            command = scripts.run(competing.TAKE, self.names.base, self.seat.name, claim.token, room, *wanted)
            answer, epoch = await self.backend.link.post([command, ("HGET", EPOCH, "epoch")])
            self.backend.set_epoch(good(epoch, "read the catalogue's epoch"))
            entries = good(answer, f"read {self.queue}")
            self._unsure = False
            if entries == 0:
                self.claim.poke()
                return ()
            self._is_hot = len(entries) >= room
            return [self._taken(entry) for entry in entries]

    def _taken(self, entry: Any) -> Fetched:
        shard, id, fields, state, seen, suspect = entry
        (fetched,) = read([(id, fields)], shard, self.claim.token)
        fetched.at = f"{fetched.at}-{shard}"
        remember(fetched, state)
        self.backend.not_before((int(id.partition(b"-")[0]) + 1) / 1000)
        fetched.shard = 0
        fetched.seen = bool(seen)
        fetched.suspect = bool(suspect)
        self.claim.out[str(fetched.at)] = state is not None
        return fetched

    async def _give_back_unknown(self) -> None:
        (pending,) = await self.backend.link.post([scripts.run(competing.MINE, self.names.base, self.seat.name)])
        known = {_place(at) for at in self.claim.out}
        parts: dict[bytes, list[bytes]] = {}
        for place in good(pending, f"look what is held of {self.queue}"):
            if place.decode() not in known:
                shard, _, id = place.partition(b":")
                parts.setdefault(shard, []).append(id)
        commands = [
            self._settlement(int(shard), kept=[item for id in ids for item in (id, "", 0)])
            for shard, ids in parts.items()
        ]
        for answer in await self.backend.link.post(commands):
            good(answer, f"give back messages of {self.queue}")

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        async with self._taking:
            yield

    def unread(self, shard: int, id: bytes) -> None:
        """The server knows better who holds what."""

    # -- outcomes

    def _mine(self, fetched: Fetched) -> bool:
        return fetched.token == self.claim.token and str(fetched.at) in self.claim.out

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        self.backend.check_usable()
        mine = [fetched for fetched in batch if self._mine(fetched)]
        refused = [fetched for fetched in batch if fetched.token != self.claim.token]
        if not mine:
            return refused  # one that was settled in the meantime would leave its mark for ever
        arguments: list[str | bytes | int] = []
        for fetched in mine:
            self.claim.out[str(fetched.at)] = True
            arguments += [_level(fetched), entry_id(fetched), pack_state(fetched, running=True)]
        command = scripts.run(competing.START, self.names.base, self.seat.name, self.claim.token, *arguments)
        (answer,) = await self.backend.link.post([command])
        if not good(answer, f"mark what runs of {self.queue}"):
            refused += mine
            self.claim.poke()
        return refused

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        self.backend.check_usable()
        refused: list[Fetched] = []
        parts: dict[int, tuple[list[Fetched], list[Unfinished]]] = {}
        for fetched in done:
            if self._mine(fetched):
                parts.setdefault(_level(fetched), ([], []))[0].append(fetched)
            else:
                refused.append(fetched)
        for outcome in rest:
            if self._mine(outcome.fetched):
                parts.setdefault(_level(outcome.fetched), ([], []))[1].append(outcome)
            else:
                refused.append(outcome.fetched)
        commands = [self._outcomes(shard, finished, left) for shard, (finished, left) in parts.items()]
        answers = await self.backend.link.post(commands)
        for answer, (finished, left) in zip(answers, parts.values(), strict=True):
            part = [*finished, *(outcome.fetched for outcome in left)]
            if good(answer, f"settle messages of {self.queue}"):
                for fetched in part:
                    self.claim.out.pop(str(fetched.at), None)
            else:
                refused += part
                self.claim.poke()
        return refused

    def _outcomes(self, shard: int, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Command:
        dead = [outcome for outcome in rest if isinstance(outcome, Dead)]
        now = self.backend.now()
        kept: list[str | bytes | int] = []
        for outcome in rest:
            if isinstance(outcome, Dead):
                continue
            fetched = outcome.fetched
            delay_s = outcome.delay_s if isinstance(outcome, Again) else 0.0
            due_ms = int((now + delay_s) * 1000) if delay_s > 0 else 0
            state = ""
            if fetched.starts or fetched.failures or fetched.crashes or self.claim.out[str(fetched.at)]:
                state = pack_state(fetched, running=False, due_ms=due_ms)
            kept += [entry_id(fetched), state, due_ms]
            if delay_s > 0:
                self._late.due_by(delay_s)
        letters: list[str | bytes] = []
        for burial in dead:
            record = burial.fetched.record
            letters += [entry_id(burial.fetched), record.id, pack_dead(record, burial.letter)]
        gone = [*done, *(burial.fetched for burial in dead)]
        return self._settlement(
            shard,
            done=[entry_id(fetched) for fetched in done],
            lives=[life_of(fetched.record) for fetched in gone if not fetched.seen],
            dropped=[entry_id(fetched) for fetched in done if self.claim.out[str(fetched.at)]],
            kept=kept,
            letters=letters,
            timed=[entry_id(fetched) for fetched in gone if fetched.record.ttl_s is not None],
        )

    def _settlement(
        self,
        shard: int,
        *,
        done: Sequence[bytes] = (),
        lives: Sequence[str] = (),
        dropped: Sequence[bytes] = (),
        kept: Sequence[str | bytes | int] = (),
        letters: Sequence[str | bytes] = (),
        timed: Sequence[bytes] = (),
    ) -> Command:
        settings = self.backend.settings
        counts = (len(done), len(lives), len(dropped), len(kept) // 3, len(letters) // 3, len(timed))
        window = (int(settings.dedup_window_s * 1000), settings.dedup_window_ids)
        names = (self.names.base, self.seat.name, self.claim.token, shard)
        return scripts.run(competing.SETTLE, *names, *window, *counts, *done, *lives, *dropped, *kept, *letters, *timed)

    def out(self) -> int:
        """The server counts what is with its members."""
        return 0

    def taken(self) -> list[tuple[int, bytes]]:
        return [(int(level), id.encode()) for id, _, level in (at.rpartition("-") for at in self.claim.out)]

    # -- ending

    async def _end(self) -> None:
        self._news.tell()
        self.backend.hear_no_more(self.names.bell, self._heard)


def _level(fetched: Fetched) -> int:
    return int(str(fetched.at).rpartition("-")[2])


def _place(at: str) -> str:
    id, _, shard = at.rpartition("-")
    return f"{shard}:{id}"
