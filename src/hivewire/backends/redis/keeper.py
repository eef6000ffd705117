"""The thread that keeps leases: an event loop and a connection of its own, so that neither a loop that stands
still nor a long queue of writes delays a renewal."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from hivewire.backend import QueueSpec
from hivewire.backends.redis import membership, scripts
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keys import Names
from hivewire.backends.redis.link import Link, good, is_on_its_way
from hivewire.backends.redis.opening import lean_link
from hivewire.errors import BackendError
from hivewire.settings import RedisSettings

log = logging.getLogger(__name__)

_AGAIN_S = 0.1
_TICKS_A_LEASE = 4
_AFTER_AN_END_S = 0.01
_MOST_A_WRITE = 200


def lease_clock() -> float:
    """Goes on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Shares(msgspec.Struct, frozen=True):
    """The answer to one heartbeat."""

    generation: int
    store_now: float
    sent_at: float
    """By `lease_clock`: what is said here was so then, or later."""
    asked_at: float
    answered_at: float
    """Wall times: what the server's clock is compared with."""
    shards: int
    surplus: int
    next_late_s: float | None
    held: dict[int, int]
    """Shard to fencing token."""
    is_new: bool
    """The server did not know the queue any more: all in it was deleted."""


class Seat:
    """One member of one queue, as the thread sees it. `generation` changes when its lease has run out."""

    def __init__(self, name: str, names: Names, lease_s: float, spec: QueueSpec, beat: str = membership.BEAT) -> None:
        self.name = name
        self._beat = beat
        self.names = names
        self.lease_s = lease_s
        self.shards = spec.shards
        self.cap = spec.cap
        self.takes = True
        self.generation = 0
        self.until = 0.0
        self.begins = True
        self.doubted = False
        """`holds` has said no by the clock: that must stay true, even if an answer came just then."""
        self.due_at = 0.0
        self.poked = False
        self.told = True
        """Whether the loop has taken the last answer: a loop that stands still gets no more shards."""
        self.was_held_back = False
        """It could not claim what was free: it asks again when the loop has taken the answer."""
        self.tell: Callable[[Shares], None] | None = None

    def question(self) -> Command:
        self.was_held_back = not self.told
        lease_ms = int(self.lease_s * 1000)
        return scripts.run(
            self._beat,
            self.names.base,
            self.name,
            lease_ms,
            int(self.takes),
            int(self.begins),
            int(self.told),
            self.shards,
            self.cap,
        )

    def is_due(self, now: float) -> bool:
        """Its lease has not been renewed for the time of a tick."""
        return now >= self.until - self.lease_s * (1 - 1 / _TICKS_A_LEASE)

    def renewal(self) -> Command:
        """Of one key, while the queue's other keys are on their way to another node."""
        return scripts.run_on(membership.RENEW, (f"{self.names.base}m",), self.name, int(self.lease_s * 1000))

    def renewed(self, answer: Reply, sent_at: float) -> None:
        now = lease_clock()
        if good(answer, f"renew the lease of {self.name}") and now < min(self.until, sent_at + self.lease_s):
            self.until = sent_at + self.lease_s
        else:
            self.lapse()

    def lapse(self) -> None:
        """The lease ran out by our clock: what was held counts no more, whatever the server says."""
        self.doubted = False
        if not self.begins:
            self.generation += 1
            self.begins = True

    def answered(self, answer: Reply, sent_at: float, asked_at: float) -> Shares | None:
        """None: it came too late to rely on."""
        now = lease_clock()
        if (not self.begins and now >= self.until) or now >= sent_at + self.lease_s:
            self.lapse()
            self.due_at = 0.0
            return None
        us, shards, surplus, ends_ms, late_ms, held, made = good(answer, f"renew the lease of {self.name}")
        self.begins = False
        self.until = sent_at + self.lease_s
        tick_s = self.lease_s / _TICKS_A_LEASE
        self.due_at = now + min(tick_s, max(ends_ms / 1000, 0.0) + _AFTER_AN_END_S)
        return Shares(
            self.generation,
            int(us) / 1e6,
            sent_at,
            asked_at,
            time.time(),
            shards,
            surplus,
            None if late_ms < 0 else late_ms / 1000,
            {int(held[i]): int(held[i + 1]) for i in range(0, len(held), 2)},
            bool(made),
        )


class Keeper:
    """Renews every seat in its time. Answers are told on the event loop that made it."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._inner: asyncio.AbstractEventLoop | None = None
        self._link: Link | None = None
        self._wake = asyncio.Event()
        self._lock = threading.Lock()
        self._seats: set[Seat] = set()
        self._stopping = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="hivewire-redis-keeper", daemon=True)
        self._thread.start()

    # -- from the event loop

    def add(self, seat: Seat) -> None:
        with self._lock:
            self._seats.add(seat)
        self._rouse()

    def remove(self, seat: Seat) -> None:
        with self._lock:
            self._seats.discard(seat)

    def poke(self, seat: Seat) -> None:
        """Beat at once: something changed."""
        seat.poked = True
        self._rouse()

    def reached(self) -> set[tuple[str, int]]:
        return set() if self._link is None else self._link.reached()

    def cut(self, why: str) -> None:
        """Renew by a new connection."""
        if self._inner is not None and self._link is not None:
            _call_on(self._inner, self._link.cut, why)

    def _rouse(self) -> None:
        """The thread looks at its seats again. Before it has a loop it has not looked yet."""
        if self._inner is not None:
            _call_on(self._inner, self._wake.set)

    def _tell(self, told: Sequence[tuple[Seat, Shares]]) -> None:
        for seat, shares in told:
            seat.told = True
            if seat.was_held_back:
                seat.was_held_back = False
                self.poke(seat)
            if seat.tell is not None:
                seat.tell(shares)

    async def close(self) -> None:
        self._stopping = True
        self._rouse()
        await self._ended.wait()
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        finally:
            _call_on(self._loop, self._ended.set)

    async def _keep(self) -> None:
        self._inner = asyncio.get_running_loop()
        link = self._link = lean_link(self._settings, scripts.load())
        try:
            while not self._stopping:
                self._wake.clear()
                soonest_s = await self._round(link)
                try:
                    async with asyncio.timeout(soonest_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await link.close()

    async def _round(self, link: Link) -> float:
        """Beat for all whose time it is; in how many seconds the next one is due."""
        with self._lock:
            seats = tuple(self._seats)
        now = lease_clock()
        due = [seat for seat in seats if seat.poked or seat.due_at <= now]
        parts = link.apart([("EXISTS", seat.names.base) for seat in due])
        done = await asyncio.gather(*[self._part(link, [due[number] for number in part]) for part in parts])
        if due and not any(done):
            link.cut("no lease was renewed in time")
        soonest = min((seat.due_at for seat in seats), default=now + 60.0)
        return min(max(soonest - lease_clock(), 0.001), 60.0)

    async def _part(self, link: Link, due: Sequence[Seat]) -> bool:
        """Those that go to one server: one that stands still costs no lease of a queue that lives elsewhere."""
        try:
            for start in range(0, len(due), _MOST_A_WRITE):
                await self._beat(link, due[start : start + _MOST_A_WRITE])
        except (BackendError, TimeoutError) as error:
            log.debug("leases not renewed", extra={"error": str(error)})
            for seat in due:
                seat.due_at = lease_clock() + _AGAIN_S
            return False
        return True

    def _limit_s(self, seats: Sequence[Seat]) -> float:
        return min(self._settings.read_timeout_s, max(min(seat.lease_s for seat in seats) / 2, 0.5))

    async def _beat(self, link: Link, due: Sequence[Seat]) -> None:
        sent_at, asked_at = lease_clock(), time.time()
        for seat in due:
            seat.poked = False
            if seat.doubted or (not seat.begins and sent_at >= seat.until):
                seat.lapse()
        async with asyncio.timeout(self._limit_s(due)):
            answers = await link.post([seat.question() for seat in due])
        told: list[tuple[Seat, Shares]] = []
        moving: list[Seat] = []
        trouble: BackendError | None = None
        for seat, answer in zip(due, answers, strict=True):
            if is_on_its_way(answer):
                moving.append(seat)
                continue
            try:
                shares = seat.answered(answer, sent_at, asked_at)
            except BackendError as error:
                trouble, seat.due_at = error, lease_clock() + _AGAIN_S
                continue
            if shares is not None:
                seat.told = False
                told.append((seat, shares))
        if told:
            _call_on(self._loop, self._tell, told)
        if moving:
            await self._renew(link, moving)
        if trouble is not None:
            raise trouble

    async def _renew(self, link: Link, moving: Sequence[Seat]) -> None:
        """Who owns what cannot be said just now; leases go on."""
        now = lease_clock()
        for seat in moving:
            seat.due_at = now + _AGAIN_S
        ends = [seat for seat in moving if not seat.begins and not seat.doubted and seat.is_due(now)]
        if ends:
            async with asyncio.timeout(self._limit_s(ends)):
                answers = await link.post([seat.renewal() for seat in ends])
            for seat, answer in zip(ends, answers, strict=True):
                seat.renewed(answer, now)


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        log.debug("the event loop is closed already")
