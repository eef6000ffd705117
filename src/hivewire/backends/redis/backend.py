"""The Redis backend: a stream for each shard, one owner for each shard, any number of processes and hosts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

import msgspec

from hivewire.backend import (
    Append,
    Backend,
    BackendHealth,
    Consumer,
    DeadRecord,
    Depth,
    Duplicate,
    Entry,
    Features,
    Member,
    Ownership,
    QueueSpec,
    Record,
    Room,
    Waiting,
)
from hivewire.backends.redis import catalogue, competing, durability, expiry, gaps, letters, looking, scripts, tidying
from hivewire.backends.redis.address import Address
from hivewire.backends.redis.blobs import RedisBlobs
from hivewire.backends.redis.channels import Channels
from hivewire.backends.redis.consumer import RedisConsumer
from hivewire.backends.redis.ears import Ears, Heard
from hivewire.backends.redis.inlet import Inlet
from hivewire.backends.redis.keeper import Keeper, Seat
from hivewire.backends.redis.keys import (
    EXPIRING,
    INTERNAL_PREFIX,
    QUEUES,
    REPLY_PREFIX,
    Names,
    base,
)
from hivewire.backends.redis.link import Link, good, is_on_its_way
from hivewire.backends.redis.member import RedisMember
from hivewire.backends.redis.opening import new_link, one_place, place_to_listen, reach
from hivewire.backends.redis.pool import PoolConsumer
from hivewire.backends.redis.sending import Sending
from hivewire.backends.redis.sentinels import Switches
from hivewire.blobs import BlobStore
from hivewire.errors import BackendError, Closed
from hivewire.forks import forks
from hivewire.rules.store_clock import StoreClock
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_CAP = 1_000_000
_MOST_WATCHED = 4


class RedisBackend(Backend):
    """Not to be used from another thread than its event loop's, nor after a fork."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = Address.of(settings.redis)
        self.features = Features(durability="process", store_lanes=False, store_competes=True)
        self._cap = settings.queue_cap or _CAP
        self._forks = forks.count
        self._link: Link | None = None
        self._ears: Ears | None = None
        self._keeper: Keeper | None = None
        self._switches: Switches | None = None
        self._sending: Sending | None = None
        self.clock = StoreClock()
        self.consumers: set[RedisMember] = set()
        self._inlet = Inlet(self) if settings.redis.inlet else None
        self._here: dict[str, list[RedisConsumer]] = {}
        """Those that own shards, by the base name of their queue."""
        self._channels = Channels(self, self._inlet)
        self._closing = asyncio.Lock()
        self._abandoned = False
        self._one_place = one_place(settings.redis)

    # -- life

    async def open(self) -> None:
        if self._link is not None:
            return
        self._forks = forks.count
        self.address.tls()  # its files are there and can be read
        link = new_link(self.settings.redis, scripts.load())
        try:
            await reach(link, self.settings.redis, self.clock)
            await self._learn_durability(link)
        except BaseException:
            await link.close()
            raise
        self._link = link
        link.on_return = self._returned
        self._ears = Ears(self.settings.redis, place_to_listen(self.settings.redis, link))
        self._keeper = Keeper(self.settings.redis)
        if self.settings.redis.sentinel_master is not None:
            self._switches = Switches(self.settings.redis, self._reached, self._another_master)
        interop = self.settings.redis.interop
        self._sending = Sending(link, self.settings.shards, self._cap, self._here, self._tell_here, interop=interop)

    def _reached(self) -> set[tuple[str, int]]:
        return {place for each in (self._keeper, self._link) if each is not None for place in each.reached()}

    def _another_master(self) -> None:
        why = "another server is the master now"
        log.warning(why, extra={"server": self.settings.redis.sentinel_master})
        if self._keeper is not None:
            self._keeper.cut(why)
        if self._link is not None:
            self._link.cut(why)

    def _returned(self) -> None:
        self.sending.forget()
        for consumer in self.consumers:
            consumer.rewind()
        if self._ears is not None and self.settings.redis.sentinel_master is not None:
            self._ears.move()

    async def _learn_durability(self, link: Link) -> durability.Kept:
        kept = await durability.ask(link)
        if self.features.durability != kept.durability:
            self.features = msgspec.structs.replace(self.features, durability=kept.durability)
        if self._link is None:
            loud = {"volatile": "THIS REDIS LOSES MESSAGES: ", "unknown": "THIS REDIS MAY LOSE MESSAGES: "}
            for warning in kept.warnings if kept.durability in loud else ():
                log.warning("%s%s", loud[kept.durability], warning, extra={"server": str(self.address)})
        return kept

    def check_usable(self) -> None:
        if self._forks != forks.count:
            raise BackendError(f"use {self.address}: it was opened before a fork; connect anew in the child process")
        if self._link is None or self._abandoned:
            raise Closed(f"use {self.address}: it is not open")

    @property
    def link(self) -> Link:
        link = self._link
        if link is None or self._abandoned or self._forks != forks.count:
            self.check_usable()  # says why not
        assert link is not None
        return link

    @property
    def ears(self) -> Ears:
        self.check_usable()
        assert self._ears is not None
        return self._ears

    def hear_no_more(self, channel: str, heard: Heard) -> None:
        """Also when it is about to be closed, or abandoned."""
        if self._ears is not None:
            self._ears.unsubscribe(channel, heard)

    @property
    def keeper(self) -> Keeper:
        if self._keeper is None:
            raise Closed(f"use {self.address}: it is not open")
        return self._keeper

    @property
    def sending(self) -> Sending:
        self.check_usable()
        assert self._sending is not None
        return self._sending

    def now(self) -> float:
        return self.clock.at(time.time())

    def not_before(self, at: float) -> None:
        """What the server has stamped is never in the future."""
        self.clock.not_before(at, time.time())

    def set_epoch(self, epoch: bytes | None) -> None:
        self.epoch = int(epoch) if epoch is not None else 0

    async def health(self) -> BackendHealth:
        try:
            kept = await self._learn_durability(self.link)
            await self._check_writable()
            told = [*kept.warnings, *await gaps.look(self)]
        except (BackendError, Closed) as error:
            return BackendHealth(ok=False, durability=self.features.durability, detail=str(error))
        return BackendHealth(ok=True, durability=kept.durability, detail=str(self.address), warnings=told)

    async def _check_writable(self) -> None:
        for name, (answer,) in await self.link.each([("INFO", "replication")]):
            if isinstance(answer, bytes) and b"role:slave" in answer:  # who may not ask is not told
                raise BackendError(f"{name} is a replica and takes no messages: name its master, or make it one")

    def abandon(self) -> None:
        self._abandoned = True
        for consumer in self.consumers:
            consumer.abandon()

    async def close(self) -> None:
        if self._forks != forks.count:
            return
        async with self._closing:
            if self._link is None:
                return
            if self._inlet is not None:
                await self._inlet.stop()
            for consumer in tuple(self.consumers):
                await (consumer.stop() if self._abandoned else consumer.close())
            self.consumers.clear()
            self._here.clear()
            if self._switches is not None:
                await self._switches.close()
            if self._keeper is not None:
                await self._keeper.close()
            if self._ears is not None:
                await self._ears.close()
            await self._link.close()
            self._link = self._ears = self._keeper = self._switches = self._sending = None

    def blobs(self) -> BlobStore:
        return RedisBlobs(lambda: self.link)

    # -- queues

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        defaults = self.sending.defaults(spec.name)
        shards = defaults.shards if spec.name.startswith("~") else spec.shards
        cap = defaults.cap if self.settings.queue_cap is not None else spec.cap
        script = scripts.run(scripts.DECLARE, base(spec.name), shards, cap, spec.mode or "")
        listed, found = await self.link.ask([("SADD", QUEUES, spec.name), script])
        good(listed, f"declare {spec.name}")
        if is_on_its_way(found):  # what is declared already can be read
            stored = await self.link.call("HMGET", f"{base(spec.name)}spec", "shards", "cap", "mode")
            if stored[0] is not None and (stored[2] or not spec.mode):
                found = stored
        self.sending.forget(spec.name)
        return _spec(spec.name, good(found, f"declare {spec.name}"))

    async def queues(self) -> Sequence[QueueSpec]:
        names = sorted([name.decode() for name in await self.link.call("SMEMBERS", QUEUES)])
        if not names:
            return []
        answers = await self.link.ask([("HMGET", f"{base(name)}spec", "shards", "cap", "mode") for name in names])
        found = [(name, good(answer, f"look at {name}")) for name, answer in zip(names, answers, strict=True)]
        return [_spec(name, stored) for name, stored in found if stored[0] is not None]

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        return await self.sending.append(batch)

    def append_soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
        sending = self._sending
        if sending is None or self._abandoned or self._forks != forks.count:
            return None  # `append` says what is wrong
        return sending.soon(queue, record)

    def may_watch(self, queue: str) -> bool:
        """Whether a consumer may keep a connection of its own, on which a read waits: for answers to requests, and
        where few queues are consumed. Not in a cluster, where each node would take one."""
        if self._one_place is None:
            return False
        return len(self.consumers) <= _MOST_WATCHED or queue.startswith(REPLY_PREFIX)

    def _tell_here(self, base: str, shard: int) -> bool:
        """A record is on its way to a shard: whether its owner is a consumer of this process."""
        here = self._here.get(base)
        return here is not None and any(consumer.told(shard) for consumer in here)

    def inlet_news(self) -> None:
        """Somebody of ours has written where programs of the reference read."""
        if self._inlet is not None:
            self._inlet.news()

    async def drop_queue(self, queue: str) -> None:
        lists = [("SREM", name, queue) for name in (QUEUES, EXPIRING)]  # before: who sends meanwhile lists it again
        for answer in await self.link.ask([*lists, scripts.run(scripts.DROP, base(queue), 0)]):
            good(answer, f"drop {queue}")
        self.sending.forget(queue)

    async def depth(self, queue: str) -> Depth:
        taken = sum([consumer.out() for consumer in self.consumers if consumer.queue == queue])
        answer, missing = await self.link.ask([scripts.run(scripts.DEPTH, base(queue)), gaps.question(queue)])
        held, runs, waits, scheduled, dead, age_ms = good(answer, f"look at {queue}")
        found = gaps.answer(self, queue, missing)
        in_flight = min(runs + taken, held - waits)
        return Depth(
            ready=max(0, held - waits - in_flight),
            in_flight=in_flight,
            scheduled=scheduled + waits,
            dead=dead,
            oldest_age_s=age_ms / 1000,
            lost=found.lost,
        )

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        out = {
            f"{shard}:".encode() + id for each in self.consumers if each.queue == queue for shard, id in each.taken()
        }
        return await looking.peek(self.link, queue, out, limit, after, delayed_only=delayed_only)

    async def withdraw(self, queue: str, cursors: Sequence[str]) -> Sequence[str]:
        return await looking.withdraw(self.link, queue, cursors) if cursors else ()

    # -- consuming

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        spec = await self.declare(self.sending.defaults(queue))
        name, names = f"{member.name}#{uuid4().hex[:12]}", Names(queue)
        consumer: RedisMember
        if self.features.leases_lanes(queue, competing=spec.mode == "competing"):
            consumer = PoolConsumer(self, spec, Seat(name, names, member.lease_s, spec, competing.BEAT), owner)
        else:
            consumer = RedisConsumer(self, spec, Seat(name, names, member.lease_s, spec), owner)
        self.consumers.add(consumer)
        if self._inlet is not None and not queue.startswith(INTERNAL_PREFIX):
            self._inlet.start()
        if isinstance(consumer, RedisConsumer):
            self._here.setdefault(names.base, []).append(consumer)
        try:
            await consumer.begin()
        except BaseException:
            self.forget(consumer)
            await consumer.stop()
            raise
        return consumer

    def forget(self, consumer: RedisMember) -> None:
        self.consumers.discard(consumer)
        here = self._here.get(consumer.names.base, [])
        if consumer in here:
            here.remove(consumer)
            if not here:
                del self._here[consumer.names.base]

    # -- dead letters

    async def _queue_names(self, queue: str | None) -> list[str]:
        return [spec.name for spec in await self.queues()] if queue is None else [queue]

    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        return await letters.listed(self.link, await self._queue_names(queue), limit, after)

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        specs = await self.queues() if queue is None else [self.sending.defaults(queue)]
        return await letters.revive(self.link, specs, ids)

    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        before = None if older_than_s is None else self.now() - older_than_s
        return await letters.purge(self.link, await self._queue_names(queue), ids, before)

    async def bury_expired(self, queue: str | None = None) -> int:
        return await expiry.bury(self, self.consumers, queue)

    async def cleanup(self, older_than_s: float | None) -> int:
        """Reply mailboxes of the dead. Settled ids and idempotency keys end by themselves."""
        await gaps.look(self)
        await tidying.mend(self)
        return await tidying.drop_mailboxes(self)

    # -- catalogue and notes

    async def get(self, key: str) -> Entry:
        return await catalogue.get(self.link, key)

    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        entry = await catalogue.put(self.link, key, value, version, ttl_s)
        if entry is not None and key.startswith(("agent/", "group/")):
            self.epoch = entry.version
        return entry

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        return await catalogue.scan(self.link, prefix)

    async def publish(self, channel: str, body: bytes) -> None:
        await self._channels.publish(channel, body)

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        return await self._channels.listen(channel, wait_s)


def _spec(name: str, stored: Sequence[bytes | int]) -> QueueSpec:
    shards, cap, mode = stored
    decided = mode.decode() if isinstance(mode, bytes) else ""
    return QueueSpec(
        name=name,
        shards=int(shards),
        cap=int(cap),
        mode="competing" if decided == "competing" else "ordered" if decided == "ordered" else None,
    )
