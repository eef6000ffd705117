"""A member's side of the simulated stores: plain calls over the wire, a kept lease, a fetch that loses nothing."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from hivewire.backend import (
    TRAIL_PREFIX,
    Again,
    Append,
    Backend,
    BackendHealth,
    Consumer,
    Dead,
    DeadRecord,
    Depth,
    Duplicate,
    Entry,
    Fetched,
    Member,
    Ownership,
    QueueSpec,
    Unfinished,
)
from hivewire.blobs import BlobStore
from hivewire.errors import ConnectionLost
from hivewire.testing.profiles_faults import Place, Wire
from hivewire.testing.profiles_world import World, channel_bell

_CLOCK_S: Final = 0.001
"""How far the clocks of member and store may differ."""

_W = TypeVar("_W", bound=World)


class ProfileBackend(Backend, Generic[_W]):
    """One member's connection to a simulated store."""

    def __init__(self, world: _W, wire: Wire) -> None:
        self.features = world.features
        self.world = world
        self.wire = wire
        self._consumers: list[Consumer] = []

    def blobs(self) -> BlobStore:
        return _Blobs(self.world, self.wire)

    @abstractmethod
    def _consumer(self, queue: str, member: Member, owner: Ownership) -> ProfileConsumer[_W]: ...

    async def open(self) -> None:
        await self.wire.call((), lambda: None)

    def now(self) -> float:
        return self.world.now()

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        return await self.wire.call(("declare",), lambda: self.world.declare(spec))

    async def queues(self) -> Sequence[QueueSpec]:
        return await self.wire.call((), lambda: list(self.world.specs.values()))

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        weight = sum(len(part.records) for part in batch)
        answer = await self.wire.call(("append",), lambda: self.world.append(batch), weight=weight)
        self.epoch = self.world.epoch
        return answer

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        await self.wire.call(("declare",), lambda: self.world.declare(QueueSpec(name=queue)))
        consumer = self._consumer(queue, member, owner)
        self._consumers.append(consumer)
        consumer.begin()
        return consumer

    async def depth(self, queue: str) -> Depth:
        return await self.wire.call((), lambda: self.world.depth(queue))

    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        return await self.wire.call((), lambda: self.world.dead(queue, limit, after))

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        return await self.wire.call(("revive",), lambda: self.world.revive(queue, ids))

    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        return await self.wire.call(("purge",), lambda: self.world.purge_dead(queue, ids, older_than_s))

    async def bury_expired(self, queue: str | None = None) -> int:
        return await self.wire.call(("bury",), self.world.bury_expired)

    async def cleanup(self, older_than_s: float | None) -> int:
        return await self.wire.call((), lambda: self.world.cleanup(older_than_s))

    async def get(self, key: str) -> Entry:
        return await self.wire.call((), lambda: self.world.get(key))

    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        return await self.wire.call(_kind_of(key), lambda: self.world.put(key, value, version, ttl_s))

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        return await self.wire.call((), lambda: self.world.scan(prefix))

    async def add_to_trail(self, chunk: bytes, keep_s: float) -> None:
        await self.put(f"{TRAIL_PREFIX}{self.now():017.6f}-{self.world.next_number():012}", chunk, 0, ttl_s=keep_s)

    async def drop_queue(self, queue: str) -> None:
        await self.wire.call(("drop",), lambda: self.world.drop_queue(queue))

    async def publish(self, channel: str, body: bytes) -> None:
        await self.wire.call(("publish",), lambda: self.world.publish(channel, body))

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        until = self.world.loop.time() + wait_s
        while True:
            heard = await self.wire.call((), lambda: self.world.hear(self.wire.name, channel))
            if heard or self.world.loop.time() >= until:
                return heard
            await self.world.bells.wait(channel_bell(channel), until)

    async def health(self) -> BackendHealth:
        try:
            await self.wire.call((), lambda: None)
        except ConnectionLost as error:
            return BackendHealth(ok=False, durability=self.features.durability, detail=str(error))
        return BackendHealth(ok=True, durability=self.features.durability)

    async def close(self) -> None:
        for consumer in self._consumers:
            await consumer.close()


class _Blobs(BlobStore):
    """Large contents, at the same store."""

    def __init__(self, world: World, wire: Wire) -> None:
        self._world = world
        self._wire = wire

    async def put(self, name: str, body: bytes) -> None:
        await self._wire.call(("blob",), lambda: self._world.blobs.__setitem__(name, body))

    async def get(self, name: str) -> bytes | None:
        return await self._wire.call((), lambda: self._world.blobs.get(name))

    async def delete(self, names: Sequence[str]) -> None:
        def forget() -> None:
            for name in names:
                self._world.blobs.pop(name, None)

        await self._wire.call(("unblob",), forget)

    async def names(self) -> list[str]:
        return await self._wire.call((), lambda: list(self._world.blobs))


def _kind_of(key: str) -> tuple[Place, ...]:
    """What a write to the catalogue is about."""
    return _KINDS.get(key.partition("/")[0], ())


_KINDS: Final[dict[str, tuple[Place, ...]]] = {
    "agent": ("subscribe",),
    "group": ("subscribe",),
    "schedule": ("schedule",),
    "schedules": ("schedule",),
    "once": ("effect",),
    "trail": ("trail",),
}


def settling(rest: Sequence[Unfinished]) -> tuple[Place, ...]:
    """What a settlement does beside acknowledging."""
    kinds = {type(unfinished) for unfinished in rest}
    places: list[Place] = ["settle"]
    if Again in kinds:
        places.append("again")
    if Dead in kinds:
        places.append("dead")
    return tuple(places)


def process_of(name: str) -> str:
    """The process of a consumer's name."""
    return name.partition("#")[0]


class ProfileConsumer(Consumer, Generic[_W]):
    """The part of a consumer's driver that every profile has: a task that keeps the lease, and a fetch that
    waits and loses nothing when it is cancelled."""

    def __init__(self, backend: ProfileBackend[_W], queue: str, member: Member, owner: Ownership) -> None:
        self.backend = backend
        self.world = backend.world
        self.wire = backend.wire
        self.name = f"{backend.wire.name}#{backend.world.next_number()}"
        """Its own name in the store: a process can consume one queue twice."""
        self.queue = queue
        self.member = member
        self.owner = owner
        self.is_closed = False
        self.safe_until = 0.0
        """The lease surely lasts until then, by the loop's time: from the sending of the last renewal."""
        self._kept: list[Fetched] = []
        self._keeper: asyncio.Task[None] | None = None

    @abstractmethod
    async def _tick(self) -> None:
        """Renew what is held; called a few times a lease, and at the begin."""

    @abstractmethod
    def _take(self, limit: int, lanes: int, run: int, starting: int) -> list[Fetched]:
        """What the store hands out now."""

    @abstractmethod
    def _finds_some(self) -> bool:
        """Whether the store would answer a waiting request now."""

    @abstractmethod
    def _is_held(self, fetched: Fetched) -> bool:
        """True unless the driver knows that this record's lease is gone."""

    def begin(self) -> None:
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def holds(self, fetched: Fetched) -> bool:
        """False when the lease may have ended, by this process's own clock: its handler must not start."""
        return not self.is_late() and self._is_held(fetched)

    def is_late(self) -> bool:
        """The lease may have ended."""
        return self.world.loop.time() >= self.safe_until - _CLOCK_S

    async def _keep(self) -> None:
        while True:
            try:
                await self._tick()
            except ConnectionLost:
                self._check_lease()
            # After an answer that came late the lease ends before the next turn.
            left = self.safe_until - _CLOCK_S - self.world.loop.time()
            await self._pause(min(self.member.lease_s / 3, left) if left > 0 else self.member.lease_s / 3)

    async def _pause(self, seconds: float) -> None:
        await self.world.loop.pause(seconds)

    def _check_lease(self) -> None:
        """Once `holds` has said no, the lease is given up, even if the store would still renew it."""
        if self.is_late():
            self._give_up()

    @abstractmethod
    def _give_up(self) -> None:
        """The lease ended: tell the engine."""

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        until = self.world.loop.time() + wait_s
        while True:
            if self._kept:
                self._kept = [fetched for fetched in self._kept if self._is_held(fetched)]
            if self._kept:
                given, self._kept = self._kept[:limit], self._kept[limit:]
                return given
            taken = await self.wire.call(
                ("fetch",), lambda: self._take(limit, lanes, run, starting), weigh=len, keep=self._keep_taken
            )
            self.backend.epoch = self.world.epoch
            taken = [fetched for fetched in taken if self._is_held(fetched)]
            if taken or self.world.loop.time() >= until or self.is_closed:
                return taken
            await self.world.bells.wait(self.queue, until, self._is_answered)

    def _is_answered(self) -> bool:
        """Whether a request that waits has its end now."""
        return self.is_closed or self.wire.is_cut or self._finds_some()

    def _keep_taken(self, taken: list[Fetched]) -> None:
        self._kept.extend(taken)

    async def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._leave()

    @abstractmethod
    async def _leave(self) -> None:
        """Give back what is held."""
