"""Which shards of one queue this member owns: gained, lost, and given up when others should have them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING

from hivewire.backend import Fetched, Ownership
from hivewire.backends.redis import membership, reading, scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keeper import Seat, Shares, lease_clock
from hivewire.backends.redis.link import good
from hivewire.backends.redis.packing import unpack_lives, unpack_settled
from hivewire.backends.redis.reading import Held
from hivewire.backends.redis.standing import Standing
from hivewire.errors import BackendError
from hivewire.rules.patience import Patience

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

_HANDOVER_S = 5.0
_RETRY_S = 0.05
_AWAKE_S = 1.0


class Tenure(Standing):
    """The shards of one member of an ordered queue."""

    def __init__(
        self, backend: RedisBackend, queue: str, seat: Seat, owner: Ownership, news: Callable[[], None]
    ) -> None:
        super().__init__(backend, queue, seat, owner, news)
        self.held: dict[int, Held] = {}
        self._gone: dict[int, tuple[int, float]] = {}
        """Tokens of shards that were given up or lost, and when: an answer that was on its way does not bring them
        back."""
        self._surplus = 0
        self._patience = Patience()
        self._resting: set[int] = set()
        """Busy shards that start nothing, so that they come to rest and can be given up."""
        self._look: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None
        self._fetches = 0
        self._time = asyncio.get_running_loop().time
        self._last_fetch = self._time()

    async def stop(self) -> None:
        self._stopped = True
        if self._look is not None:
            self._look.cancel()
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)
        await super().stop()

    # -- what the heartbeat says

    def lapsed(self) -> None:
        self.lose(set(self.held))

    def forget(self) -> None:
        self.held.clear()

    async def _apply(self, shares: Shares) -> None:
        self.lose({n for n, held in self.held.items() if shares.held.get(n) != held.token})
        new = {n: token for n, token in shares.held.items() if n not in self.held}
        gained = {n: token for n, token in new.items() if n not in self._gone or self._gone[n][0] != token}
        if gained:
            await self._take_over(gained)
        undone = {n: token for n, token in new.items() if n not in gained and self._gone[n][1] < shares.sent_at}
        if undone:  # the server has lost its last writes: nobody would read these any more
            await self._release(undone)
            self.poke()
        self._surplus = shares.surplus
        self._rest_or_wake()
        self.give_up_some()

    async def _take_over(self, gained: Mapping[int, int]) -> None:
        """Read what earlier owners left, then tell the engine, then read records."""
        base = self.seat.names.base
        shards = sorted(gained)
        commands: list[Command] = []
        for n in shards:
            commands.append(("HGET", f"{base}o", f"x{n}"))
            commands.append(("HGETALL", f"{base}st{n}"))
            commands.append(("LRANGE", f"{base}done{n}", 0, -1))
        since = self._backend.now() - self._backend.settings.dedup_window_s
        commands.append(("ZRANGEBYSCORE", f"{base}past", int(since * 1000), "+inf"))
        answers = [good(answer, "take over shards") for answer in await self._backend.link.post(commands)]
        past = unpack_lives(answers.pop())  # what has expired unread, above all
        for place, n in enumerate(shards):
            suspect_to, states, chunks = answers[3 * place : 3 * place + 3]
            held = Held(n, gained[n], reading.position(suspect_to) if suspect_to else (0, 0))
            for at in range(0, len(states), 2):
                held.states[states[at]] = states[at + 1]
                held.stored.add(states[at])
            await self._owner.gained(n, held.token, b"", [*past, *unpack_settled(chunks, since)])
            past = []
            self.held[n] = held
        self._news()

    def lose(self, shards: Set[int]) -> None:
        """They are somebody else's."""
        if shards:
            for n in shards:
                self._gone[n] = self.held.pop(n).token, lease_clock()
            self._owner.lost(shards)

    def holding(self, fetched: Fetched) -> Held | None:
        held = self.held.get(fetched.shard)
        return held if held is not None and held.token == fetched.token else None

    def holds(self, fetched: Fetched) -> bool:
        """By our own clock, too."""
        return self.in_time() and self.holding(fetched) is not None

    # -- taking part

    def begins(self) -> None:
        """Somebody asks for records, until `ends`."""
        self._fetches += 1

    def ends(self) -> None:
        self._fetches -= 1
        self._last_fetch = self._time()

    def take_part(self) -> None:
        """Again, if this member had rested."""
        if not self.seat.takes:
            self._rest_or_wake()

    async def awake(self) -> None:
        """`take_part`, and wait until it does."""
        if self.seat.takes:
            return
        self._applied.clear()
        self._rest_or_wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AWAKE_S):
                await self._applied.wait()

    def _rest_or_wake(self) -> None:
        """Who has not fetched for the time of a lease takes no share from those who do."""
        quiet = not self._fetches and asyncio.get_running_loop().time() - self._last_fetch > self.seat.lease_s
        if quiet == self.seat.takes:
            self.seat.takes = not quiet
            self.poke()

    # -- planned moves

    def give_up_some(self) -> None:
        """Shards that others should have: those in which nothing runs at once, busy ones when they have come
        to rest."""
        if self._moving is not None or self._stopped or (self._surplus <= 0 and not self._resting):
            return
        now = asyncio.get_running_loop().time()
        busy = self._owner.busy(self.held.keys())
        idle = sorted(
            (n for n in self.held if n not in busy), key=lambda n: (n not in self._resting, len(self.held[n].out))
        )
        going = set(idle[: max(self._surplus, 0)])
        if going:
            self._surplus -= len(going)
            self._resting -= going
            self._owner.rest(going)  # nothing may begin there before the task does
            self._patience.moved(goes_on=bool(self._resting))
            self._moving = asyncio.get_running_loop().create_task(self._move(going), name=f"give up {self.seat.name}")
        self._resting &= self.held.keys()
        if self._resting and (self._surplus <= 0 or self._patience.is_over(now)):
            self._owner.go_on(self._resting)
            self._resting = set()
        wanted = self._surplus - len(self._resting)
        if wanted > 0 and self._patience.may_begin(now, goes_on=bool(self._resting)):
            chosen = sorted(busy - self._resting, key=lambda n: len(self.held[n].out))[:wanted]
            self._owner.rest(set(chosen))
            self._resting.update(chosen)
        self._look_later(now)

    def _look_later(self, now: float) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._resting or self._surplus > 0:
            self._look = asyncio.get_running_loop().call_later(self._patience.left_s(now), self.give_up_some)

    async def _release(self, shards: Mapping[int, int]) -> None:
        arguments = [part for shard in shards.items() for part in shard]
        command = scripts.run(membership.RELEASE, self.seat.names.base, self.seat.name, *arguments)
        (answer,) = await self._backend.link.post([command])
        good(answer, "give up shards")

    async def _move(self, shards: set[int]) -> None:
        try:
            await self._hand_over(shards)
        finally:
            self._moving = None
        self.give_up_some()

    async def _hand_over(self, shards: set[int]) -> None:
        going = {n: self.held[n] for n in shards}
        for held in going.values():
            held.is_leaving = True
        await self._owner.losing(shards, _HANDOVER_S)
        while self._generation == self.seat.generation:
            try:
                await self._release({n: held.token for n, held in going.items()})
                break
            except BackendError as error:
                log.debug("cannot give up shards yet", extra={"member": self.seat.name, "error": str(error)})
                await asyncio.sleep(_RETRY_S)
        for n, held in going.items():
            self._gone[n] = held.token, lease_clock()
            if self.held.get(n) is held:
                del self.held[n]
        self._news()
