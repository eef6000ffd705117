"""One member's part of one queue: the shards that it owns, and what becomes of their records."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from hivewire.backend import Fetched, Ownership, QueueSpec, Unfinished
from hivewire.backends.redis import membership, reading, scripts, settlement
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keeper import Seat, lease_clock
from hivewire.backends.redis.keys import INLET_BELL
from hivewire.backends.redis.link import ON_THE_WAY, good, is_on_its_way
from hivewire.backends.redis.member import RedisMember
from hivewire.backends.redis.packing import pack_state
from hivewire.backends.redis.reading import Held
from hivewire.backends.redis.taking import Taking
from hivewire.backends.redis.tenure import Tenure
from hivewire.errors import Closed, ConnectionLost

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

_REST_S = 1.5


class RedisConsumer(RedisMember):
    """Owns whole shards; reads them by cursors of its own, which consumes nothing."""

    tells = True
    _leave: ClassVar[str] = membership.LEAVE

    def __init__(self, backend: RedisBackend, spec: QueueSpec, seat: Seat, owner: Ownership) -> None:
        super().__init__(backend, spec, seat)
        self.tenure = Tenure(backend, spec.name, seat, owner, self._shards_changed)
        self.standing = self.tenure
        self.held = self.tenure.held
        self.taking = Taking(backend, spec.name, self.names, self.tenure, owner)
        self.tenure.on_late = self._late.due_in
        self._rests_until = 0.0
        """Nothing is read before: outcomes cannot be stored, as the slot is on its way to another node."""

    async def begin(self) -> None:
        await self.backend.ears.subscribe(self.names.news, self._heard)
        await self.tenure.begin()

    def holds(self, fetched: Fetched) -> bool:
        return self.tenure.holds(fetched)

    def _shards_changed(self) -> None:
        self.taking.shards_changed()

    def _heard(self, what: bytes | None) -> None:
        if what is None:
            self.taking.look_again()
            self.tenure.poke()
            return
        for part in what.split(b","):
            if part == b"m":
                self.tenure.poke()
            elif part == b"*":
                self._late.due_in(0.0)
            elif part == INLET_BELL:
                self.backend.inlet_news()

    def told(self, shard: int) -> bool:
        """A sender of this process has just sent a record to the shard. Whether it is this member's: then it is
        read in its turn."""
        held = self.held.get(shard)
        if held is None or held.is_leaving or self._closed or self.seat.until <= lease_clock():
            return False
        self.taking.sent_here(held)
        return True

    def rewind(self) -> None:
        self.taking.rewind()

    # -- taking

    def _check_may_read(self) -> None:
        self.backend.check_usable()
        if self._rests_until and self._rests_until > lease_clock():
            raise ConnectionLost(f"receive from {self.queue}: {ON_THE_WAY}")

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self._check_may_read()
        if self._closed or limit <= 0 or lanes <= 0 or run <= 0:
            return ()
        return await self.taking.fetch(limit, wait_s, lanes, run)

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        self._check_may_read()
        if self._closed:
            raise Closed(f"receive from {self.queue}: it was left")
        return self.taking.take_now(limit, lanes, run)

    def ask_no_more(self) -> None:
        self.taking.ask_no_more()

    async def refetch(self, shard: int, at: Sequence[int | str]) -> Sequence[Fetched]:
        held = self.held.get(shard)
        if held is None or not at:
            return []
        stream = self.names.stream(shard)
        found: list[Fetched] = []
        for answer in await self.backend.link.post([("XRANGE", stream, str(id), str(id)) for id in at]):
            again = held.read(good(answer, f"read {self.queue}"))
            held.out.update([fetched.id for fetched in again])
            found += again
        return found

    def still(self) -> AbstractAsyncContextManager[None]:
        return self.taking.still()

    def unread(self, shard: int, id: bytes) -> Held | None:
        return self.taking.unread(shard, id)

    # -- outcomes

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        self.backend.check_usable()
        parts: dict[int, list[Fetched]] = {}
        for fetched in batch:
            parts.setdefault(fetched.shard, []).append(fetched)
        commands: list[Command] = []
        asked: list[list[Fetched]] = []
        refused: list[Fetched] = []
        for n, part in parts.items():
            held = self.tenure.holding(part[0])
            if held is None:
                refused += part
                continue
            # One that was settled in the meantime would leave its mark for ever.
            here = [fetched for fetched in part if reading.entry_id(fetched) in held.out]
            if here:
                arguments: list[str | bytes] = []
                for fetched in here:
                    arguments += [reading.entry_id(fetched), pack_state(fetched, running=True)]
                    held.stored.add(reading.entry_id(fetched))
                    held.marked.add(reading.entry_id(fetched))
                commands.append(scripts.run(scripts.START, self.names.base, self.seat.name, n, held.token, *arguments))
                asked.append(here)
        for answer, asked_of in zip(await self.backend.link.post(commands), asked, strict=True):
            if not good(answer, f"mark what runs of {self.queue}"):
                self._refused(asked_of)
                refused += asked_of
        return refused

    def _refused(self, part: Sequence[Fetched]) -> None:
        """The fence has refused what was asked of these: their shard is lost, if it was not given up meanwhile."""
        if self.tenure.holding(part[0]) is not None:
            self.tenure.lose({part[0].shard})
            self.tenure.poke()

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return await self.settle_soon(done, rest)

    def settle_soon(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()
    ) -> asyncio.Future[Sequence[Fetched]]:
        self.backend.check_usable()
        now = self.backend.now()
        asked: dict[int, list[Fetched]] = {}
        arguments: list[str | bytes | int] = []
        told: list[tuple[Held, list[bytes]]] = []
        refused: list[Fetched] = []
        for finished, left in settlement.by_tenure(done, rest):
            everything = [*finished, *(outcome.fetched for outcome in left)] if left else finished
            held = self.tenure.holding(everything[0])
            if held is None:
                refused += everything
                continue
            arguments += settlement.arguments(held, finished, left, now)
            asked[held.shard] = everything
            if held.stored:
                told.append((held, [reading.entry_id(fetched) for fetched in settlement.gone(finished, left)]))
        outcome: asyncio.Future[Sequence[Fetched]] = asyncio.get_running_loop().create_future()
        if asked:
            settings = self.backend.settings
            window = (settings.dedup_window_ids, int(settings.dedup_window_s * 1000))
            command = scripts.run(scripts.SETTLE, self.names.base, self.seat.name, *window, *arguments)
            answered = partial(self._settled, outcome, asked, told, refused)
            self.backend.link.post_for(answered, (command,), beyond_s=0.0)
        else:
            self._after_settling(told)
            outcome.set_result(refused)
        return outcome

    def _settled(
        self,
        outcome: asyncio.Future[Sequence[Fetched]],
        asked: dict[int, list[Fetched]],
        told: Sequence[tuple[Held, list[bytes]]],
        refused: list[Fetched],
        posted: asyncio.Future[list[Reply]],
    ) -> None:
        try:
            (answer,) = posted.result()
            self._rests_until = lease_clock() + _REST_S if is_on_its_way(answer) else 0.0
            for shard in good(answer, f"settle messages of {self.queue}"):
                self._refused(asked[shard])
                refused += asked[shard]
        except Exception as error:  # noqa: BLE001  # told to whoever waits
            if not outcome.done():
                outcome.set_exception(error)
            return
        self._after_settling(told)
        if not outcome.done():
            outcome.set_result(refused)

    def _after_settling(self, told: Sequence[tuple[Held, list[bytes]]]) -> None:
        for held, ids in told:
            held.stored.difference_update(ids)
        self.tenure.give_up_some()

    def out(self) -> int:
        """Not marked in the store."""
        return sum(held.unmarked() for held in self.held.values())

    def taken(self) -> list[tuple[int, bytes]]:
        return [(shard, id) for shard, held in self.held.items() for id in held.out - held.paused]

    # -- ending

    def abandon(self) -> None:
        super().abandon()
        self.taking.abandon()

    async def _end(self) -> None:
        await self.taking.stop()
