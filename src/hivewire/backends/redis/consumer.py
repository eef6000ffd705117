"""One member's part of one queue: the shards that it owns, and what it has read of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from hivewire.backend import Again, Consumer, Dead, Fetched, Ownership, QueueSpec, Unfinished
from hivewire.backends.redis import reading, scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keeper import Seat, Shares, lease_clock
from hivewire.backends.redis.keys import EPOCH, Names
from hivewire.backends.redis.link import good
from hivewire.backends.redis.packing import pack_dead, pack_settled, pack_state, unpack_settled, unpack_state
from hivewire.backends.redis.reading import Held
from hivewire.errors import BackendError, LeaseLost

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

_LOOK_EACH_S = 2.0
"""Owned shards are read anew this often, should a bell have been lost."""
_HANDOVER_S = 5.0
_RETRY_S = 0.05
_AWAKE_S = 1.0


class RedisConsumer(Consumer):
    """Owns whole shards; reads them by cursors of its own, which consumes nothing."""

    def __init__(self, backend: RedisBackend, spec: QueueSpec, seat: Seat, owner: Ownership) -> None:
        self.backend = backend
        self.queue = spec.name
        self.names: Names = seat.names
        self.seat = seat
        self.owner = owner
        self.held: dict[int, Held] = {}
        self._gone: dict[int, int] = {}
        """Tokens of shards that were given up or lost: an answer that was on its way does not bring them back."""
        self._generation = 0
        self._surplus = 0
        self._news = asyncio.Event()
        self._answers: asyncio.Queue[Shares] = asyncio.Queue()
        self._applied = asyncio.Event()
        self._applying: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._maturing: asyncio.Task[None] | None = None
        self._late: asyncio.TimerHandle | None = None
        self._reading = asyncio.Lock()
        self._fetches = 0
        self._last_fetch = asyncio.get_running_loop().time()
        self._closed = False

    # -- ownership

    async def begin(self) -> None:
        """Returns when the first answer is in force."""
        self.seat.tell = self._told
        self._applying = asyncio.get_running_loop().create_task(self._apply_all(), name=f"own {self.queue}")
        await self.backend.ears.subscribe(self.names.bell, self._heard)
        self.backend.keeper.add(self.seat)
        try:
            async with asyncio.timeout(self.backend.address.settings.dial_timeout_s):
                await self._applied.wait()
        except TimeoutError:
            log.warning("no shard yet: the server does not answer", extra={"queue": self.queue})

    def _told(self, shares: Shares) -> None:
        self._answers.put_nowait(shares)

    async def _apply_all(self) -> None:
        while True:
            shares = await self._answers.get()
            while True:
                try:
                    await self._apply(shares)
                    break
                except BackendError as error:
                    log.debug("cannot take over shards yet", extra={"queue": self.queue, "error": str(error)})
                    await asyncio.sleep(_RETRY_S)
                    if not self._answers.empty():
                        break
            self._applied.set()

    async def _apply(self, shares: Shares) -> None:
        self.backend.set_clock(shares.store_now - shares.asked_at)
        if shares.generation != self._generation:
            self._lose(set(self.held))
            self._generation = shares.generation
        self._lose({n for n, held in self.held.items() if shares.held.get(n) != held.token})
        gained = {n: token for n, token in shares.held.items() if n not in self.held and self._gone.get(n) != token}
        if gained:
            await self._take_over(gained)
        self._surplus = shares.surplus
        self._due_in(shares.next_late_s)
        self._rest_or_wake()
        self._give_up_some()

    async def _take_over(self, gained: Mapping[int, int]) -> None:
        """Read what earlier owners left, then tell the engine, then read records."""
        base = self.names.base
        shards = sorted(gained)
        commands: list[Command] = []
        for n in shards:
            commands.append(("HGET", f"{base}o", f"x{n}"))
            commands.append(("HGETALL", f"{base}st{n}"))
            commands.append(("LRANGE", f"{base}done{n}", 0, -1))
        answers = await self.backend.link.post(commands)
        answers = [good(answer, f"take over shards of {self.queue}") for answer in answers]
        since = self.backend.now() - self.backend.settings.dedup_window_s
        for place, n in enumerate(shards):
            suspect_to, states, chunks = answers[3 * place : 3 * place + 3]
            held = Held(n, gained[n], reading.position(suspect_to) if suspect_to else (0, 0))
            for at in range(0, len(states), 2):
                held.states[states[at]] = unpack_state(states[at + 1])
                held.stored.add(states[at])
            await self.owner.gained(n, held.token, b"", unpack_settled(chunks, since))
            self.held[n] = held
        self._news.set()

    def _lose(self, shards: Set[int]) -> None:
        if shards:
            for n in shards:
                self._gone[n] = self.held.pop(n).token
            self.owner.lost(shards)

    def _rest_or_wake(self) -> None:
        """Who has not fetched for the time of a lease takes no share from those who do."""
        quiet = not self._fetches and asyncio.get_running_loop().time() - self._last_fetch > self.seat.lease_s
        if quiet == self.seat.takes:
            self.seat.takes = not quiet
            self.backend.keeper.poke(self.seat)

    def _give_up_some(self) -> None:
        """Shards that others should have, as far as nothing runs in them."""
        if self._surplus <= 0 or self._moving is not None or self._closed:
            return
        busy = self.owner.busy(self.held.keys())
        idle = sorted((n for n in self.held if n not in busy), key=lambda n: len(self.held[n].out))
        if idle:
            going = set(idle[: self._surplus])
            self._surplus -= len(going)
            self._moving = asyncio.get_running_loop().create_task(self._move(going), name=f"give up {self.queue}")

    async def _move(self, shards: set[int]) -> None:
        try:
            await self._hand_over(shards)
        finally:
            self._moving = None

    async def _hand_over(self, shards: set[int]) -> None:
        going = {n: self.held[n] for n in shards}
        for held in going.values():
            held.is_leaving = True
        await self.owner.losing(shards, _HANDOVER_S)
        arguments: list[int] = []
        for n, held in going.items():
            arguments += [n, held.token]
        command = scripts.run(scripts.RELEASE, self.names.base, self.seat.name, *arguments)
        while self._generation == self.seat.generation:
            try:
                (answer,) = await self.backend.link.post([command])
                good(answer, f"give up shards of {self.queue}")
                break
            except BackendError as error:
                log.debug("cannot give up shards yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_RETRY_S)
        for n, held in going.items():
            self._gone[n] = held.token
            if self.held.get(n) is held:
                del self.held[n]

    def holds(self, fetched: Fetched) -> bool:
        seat = self.seat
        if seat.until <= lease_clock():
            seat.doubted = True
            return False
        held = self._holding(fetched)
        return held is not None and seat.generation == self._generation

    # -- bells

    def _heard(self, what: bytes | None) -> None:
        if what is None:
            for held in self.held.values():
                held.is_hot = True
            self._news.set()
            self.backend.keeper.poke(self.seat)
            return
        for part in what.split(b","):
            if part == b"m":
                self.backend.keeper.poke(self.seat)
            elif part == b"*":
                self._due_in(0.0)
            elif part.isdigit() and int(part) in self.held:
                self.held[int(part)].is_hot = True
                self._news.set()

    def _due_in(self, seconds: float | None) -> None:
        """Look for delayed messages that are due then."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if seconds is not None and not self._closed:
            self._late = asyncio.get_running_loop().call_later(min(seconds, 3600.0) + 0.001, self._mature)

    def _mature(self) -> None:
        self._late = None
        if self._maturing is None:
            self._maturing = asyncio.get_running_loop().create_task(self._move_late(), name=f"due {self.queue}")
        else:
            self._due_in(0.01)

    async def _move_late(self) -> None:
        next_ms = 1000
        try:
            (answer,) = await self.backend.link.post([scripts.run(scripts.MOVE, self.names.base, 200)])
            next_ms = good(answer, f"move delayed messages of {self.queue}")
        except BackendError as error:
            log.debug("cannot move delayed messages yet", extra={"queue": self.queue, "error": str(error)})
        finally:
            self._maturing = None
        self._due_in(None if next_ms < 0 else next_ms / 1000)

    # -- taking

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        if self._closed or limit <= 0 or lanes <= 0 or run <= 0:
            return ()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        self._fetches += 1
        try:
            await self._awake()
            while True:
                self._news.clear()
                async with self._reading:
                    if not any(held.buffer for held in self.held.values()):
                        await self._read(limit)
                    taken = reading.hand_out(self.held.values(), limit, lanes, run)
                left = until - loop.time()
                if taken or left <= 0 or self._closed:
                    return taken
                try:
                    async with asyncio.timeout(min(left, _LOOK_EACH_S)):
                        await self._news.wait()
                except TimeoutError:
                    for held in self.held.values():
                        held.is_hot = True
        finally:
            self._fetches -= 1
            self._last_fetch = loop.time()

    async def _awake(self) -> None:
        """Take part again, if this member had rested."""
        if self.seat.takes:
            return
        self._applied.clear()
        self._rest_or_wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AWAKE_S):
                await self._applied.wait()

    async def _read(self, limit: int) -> None:
        hot = [held for held in self.held.values() if held.is_hot and not held.is_leaving]
        if not hot:
            return
        count = min(limit, max(16, limit // len(hot)))
        streams = [self.names.stream(held.shard) for held in hot]
        command: Command = ("XREAD", "COUNT", count, "STREAMS", *streams, *(held.cursor for held in hot))
        for held in hot:
            held.is_hot = False
        try:
            found, epoch = await self.backend.link.post([command, ("HGET", EPOCH, "epoch")])
            found = good(found, f"read {self.queue}")
            self.backend.set_epoch(good(epoch, "read the catalogue's epoch"))
        except BaseException:
            for held in hot:
                held.is_hot = True
            raise
        by_name = dict(zip(streams, hot, strict=True))
        for name, entries in found or ():
            held = by_name[name.decode()]
            if self.held.get(held.shard) is held:
                held.take(entries)
                held.is_hot = len(entries) >= count

    async def refetch(self, at: Sequence[int | str]) -> Sequence[Fetched]:
        places = [str(place).split(":") for place in at]
        wanted = [(held, place) for n, place in places if (held := self.held.get(int(n))) is not None]
        commands: list[Command] = [("XRANGE", self.names.stream(held.shard), id, id) for held, id in wanted]
        if not commands:
            return []
        found: list[Fetched] = []
        for (held, _), answer in zip(wanted, await self.backend.link.post(commands), strict=True):
            for entry in good(answer, f"read {self.queue}"):
                fetched = held.read(entry)
                held.out[entry[0]] = fetched
                found.append(fetched)
        return found

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Nothing is read while this lasts."""
        async with self._reading:
            yield

    def unread(self, shard: int, id: bytes) -> Held | None:
        """The shard, if it is owned here and the engine has not had this record: it may be taken away. A copy
        that lies ready is forgotten."""
        held = self.held.get(shard)
        if held is None or held.is_leaving:
            return None
        return held if held.take_back(id) else None

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
            held = self._holding(part[0])
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
        await self._fenced(commands, asked, refused, "mark what runs")
        return refused

    def _holding(self, fetched: Fetched) -> Held | None:
        held = self.held.get(fetched.shard)
        return held if held is not None and held.token == fetched.token else None

    async def _fenced(
        self, commands: list[Command], asked: list[list[Fetched]], refused: list[Fetched], doing: str
    ) -> None:
        """Ask; what the fence refuses is added to `refused`, and its shards are lost."""
        if not commands:
            return
        lost: set[int] = set()
        for answer, part in zip(await self.backend.link.post(commands), asked, strict=True):
            if not good(answer, f"{doing} of {self.queue}"):
                refused += part
                if self._holding(part[0]) is not None:
                    lost.add(part[0].shard)
        if lost:
            self._lose(lost)
            self.backend.keeper.poke(self.seat)

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        self.backend.check_usable()
        parts: dict[tuple[int, int], tuple[list[Fetched], list[Unfinished]]] = {}
        for fetched in done:
            parts.setdefault((fetched.shard, fetched.token), ([], []))[0].append(fetched)
        for outcome in rest:
            key = (outcome.fetched.shard, outcome.fetched.token)
            parts.setdefault(key, ([], []))[1].append(outcome)
        commands: list[Command] = []
        asked: list[list[Fetched]] = []
        refused: list[Fetched] = []
        for finished, left in parts.values():
            everything = [*finished, *(outcome.fetched for outcome in left)]
            held = self._holding(everything[0])
            if held is None:
                refused += everything
                continue
            commands.append(self._settlement(held, finished, left))
            asked.append(everything)
        await self._fenced(commands, asked, refused, "settle messages")
        for fetched in done:
            held = self._holding(fetched)
            if held is not None and held.stored:
                held.stored.discard(reading.entry_id(fetched))
        self._give_up_some()
        return refused

    def _settlement(self, held: Held, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Command:
        ids = [reading.entry_id(fetched) for fetched in done]
        dead = [outcome for outcome in rest if isinstance(outcome, Dead)]
        states: list[str | bytes] = []
        dropped = [id for id in ids if id in held.stored]
        now = self.backend.now()
        for outcome in rest:
            if isinstance(outcome, Dead):
                continue
            fetched = outcome.fetched
            id = reading.entry_id(fetched)
            due_ms = int((now + outcome.delay_s) * 1000) if isinstance(outcome, Again) and outcome.delay_s > 0 else 0
            if due_ms or fetched.starts or fetched.failures or fetched.crashes or id in held.stored:
                states += [id, pack_state(fetched, running=False, due_ms=due_ms)]
                held.stored.add(id)
            held.waiting(id)
        letters: list[str | bytes] = []
        for burial in dead:
            id = reading.entry_id(burial.fetched)
            letters += [id, burial.fetched.record.id, pack_dead(burial.fetched.record, burial.letter)]
            held.forget(id)
        for id in ids:
            held.forget(id)
        timed = [id for id, fetched in zip(ids, done, strict=True) if fetched.record.ttl_s is not None]
        timed += [reading.entry_id(burial.fetched) for burial in dead if burial.fetched.record.ttl_s is not None]
        lives = [fetched.record for fetched in done] + [burial.fetched.record for burial in dead]
        return scripts.run(
            scripts.SETTLE,
            self.names.base,
            self.seat.name,
            held.shard,
            held.token,
            pack_settled(now, lives) if lives else b"",
            len(lives),
            self.backend.settings.dedup_window_ids,
            len(ids),
            len(dropped),
            len(states) // 2,
            len(dead),
            len(timed),
            *ids,
            *dropped,
            *states,
            *letters,
            *timed,
        )

    def out(self) -> int:
        """Taken by this member, and not marked in the store."""
        return sum(held.unmarked() for held in self.held.values())

    async def save(self, shard: int, watermark: int | None, state: bytes) -> None:
        raise LeaseLost(f"save shard {shard} of {self.queue}: this store acknowledges each record")

    # -- ending

    def abandon(self) -> None:
        """As if the process was killed."""
        self._closed = True
        self.backend.keeper.remove(self.seat)

    async def stop(self) -> None:
        """End what runs here; say nothing to the server."""
        self._closed = True
        self._news.set()
        self.seat.tell = None
        self.backend.keeper.remove(self.seat)
        self.backend.ears.unsubscribe(self.names.bell, self._heard)
        self._due_in(None)
        tasks = [task for task in (self._applying, self._moving, self._maturing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        if self._closed:
            return
        await self.stop()
        self.backend.forget(self)
        self.held.clear()
        try:
            (answer,) = await self.backend.link.post([scripts.run(scripts.LEAVE, self.names.base, self.seat.name)])
            good(answer, f"leave {self.queue}")
        except BackendError as error:
            log.warning("what was held could not be given back; it is free when the lease ends: %s", error)
