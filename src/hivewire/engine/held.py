"""What one process holds of one agent's queue, as all parts of its inbox see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Set

from hivewire.backend import Consumer
from hivewire.engine.core import Core
from hivewire.engine.flag import Flag
from hivewire.engine.remembered import Remembered
from hivewire.engine.shards import Shards
from hivewire.errors import Closed
from hivewire.protocol import ProtocolMetrics
from hivewire.record import VOLATILE_SHARD, Fetched
from hivewire.rules.lanes import Lane, Lanes


class Watcher(ABC):
    """Who has something to do with what is held."""

    __slots__ = ()

    @abstractmethod
    def lost(self, shards: Set[int], lanes: Sequence[Lane]) -> None:
        """These are somebody else's now; the lanes are marked so."""


class Taker(Watcher):
    """Who takes from an inbox and hands out by itself."""

    __slots__ = ()

    @abstractmethod
    def pushed(self) -> None:
        """Something became ready without a fetch."""

    @abstractmethod
    def news(self) -> None:
        """There may be something to fetch."""

    @abstractmethod
    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        """What it had asked for."""


class Held:
    """Lanes, owned shards, and what was settled lately, of one queue in this process.

    Invariants: of one key at most one record is handed out; a record whose lease is lost is neither settled nor
    started.
    """

    __slots__ = (
        "arrived", "closed", "core", "ending", "is_internal", "joined", "lanes", "metrics",
        "notes", "now", "queue", "remembered", "shards", "store_lanes", "taker", "watchers",
    )  # fmt: skip

    def __init__(self, core: Core, queue: str, *, competing: bool) -> None:
        features = core.features
        self.core = core
        self.queue = queue
        self.is_internal = queue.startswith("~")
        """What comes here is the engine's own work: no handler of a user runs in it."""
        self.metrics = ProtocolMetrics() if self.is_internal else core.metrics
        """Internal queues are not counted as the user's messages."""
        self.notes = core.notes(queue)
        self.lanes = Lanes(competing=competing, by_priority=not features.store_lanes)
        self.store_lanes = features.leases_lanes(queue, competing=competing)
        self.shards = None if self.store_lanes else Shards(per_record_ack=features.per_record_ack)
        """Lanes live here where the store leases whole shards."""
        self.remembered = Remembered(
            core.settings,
            here=not (features.store_lanes and features.remembers_settled),
            may_return=self.store_lanes or features.per_record_ack,
        )
        self.taker: Taker | None = None
        self.watchers: tuple[Watcher, ...] = ()
        self.joined: Consumer | None = None
        self.now = 0.0
        """The store's time of the last fetch: near enough for windows of minutes."""
        self.arrived = Flag()
        """Something became ready, or ended."""
        self.ending = False
        """Closing has begun: what is given back then must not be overtaken by what is still on its way here."""
        self.closed = False

    @property
    def consumer(self) -> Consumer:
        """Raises `Closed` before and after."""
        if self.joined is None or self.closed:
            raise Closed(f"receive from {self.queue}: the protocol was closed")
        return self.joined

    def woken(self) -> None:
        """Something became ready without a fetch."""
        self.arrived.set()
        if self.taker is not None:
            self.taker.pushed()

    def lane_left(self) -> None:
        """Its taker has it no more."""
        if self.shards is not None:
            self.shards.freed.set()

    def keep_contents(self, records: Iterable[Fetched]) -> None:
        if self.core.claims is not None:
            self.core.claims.kept(records)

    def holds(self, lane: Lane) -> bool:
        """Whether the lane's first record may be started; if the lease has run out, all is forgotten. Of a lane whose
        shard has moved it is known, and the shard may have come back since."""
        if lane.lost or lane.away or not lane.waiting:
            return False
        if lane.shard != VOLATILE_SHARD and (self.joined is None or not self.joined.holds(lane.waiting[0])):
            self.lost({lane.shard})
            return False
        return True

    def refused(self, lane: Lane) -> None:
        """The store says that the lane is somebody else's. If that is known here already, its shard may have
        come back since, and stays."""
        if not (lane.lost or lane.away):
            self.lost({lane.shard})

    def lost(self, shards: Set[int]) -> None:
        """With somebody else already."""
        if self.shards is not None:
            self.shards.lost(shards)
        lanes = self.lanes.lose(shards)
        for lane in lanes:
            self.keep_contents(lane.waiting)
        self.tell_lost(shards, lanes)

    def tell_lost(self, shards: Set[int], lanes: Sequence[Lane]) -> None:
        for watcher in self.watchers:
            watcher.lost(shards, lanes)

    async def mark(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Store running marks; returns those whose lease is lost."""
        if self.shards is not None:
            return await self.shards.mark(self.consumer, batch)
        return await self.consumer.start(batch)
