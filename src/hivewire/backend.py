"""What a store must do: sharded queues of opaque records. All meaning is in the engine."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Hashable, Mapping, Sequence, Set
from typing import ClassVar
from uuid import uuid4

import msgspec

from hivewire.blobs import BlobStore
from hivewire.errors import BackendError, Unsupported
from hivewire.record import Fetched as Fetched
from hivewire.record import Record as Record
from hivewire.record import life as life
from hivewire.rules.moved import Returned as Returned
from hivewire.stored import Again as Again
from hivewire.stored import Append as Append
from hivewire.stored import Back as Back
from hivewire.stored import BackendHealth as BackendHealth
from hivewire.stored import Dead as Dead
from hivewire.stored import DeadRecord as DeadRecord
from hivewire.stored import Depth as Depth
from hivewire.stored import Duplicate as Duplicate
from hivewire.stored import Durability as Durability
from hivewire.stored import Entry as Entry
from hivewire.stored import Letter as Letter
from hivewire.stored import Member as Member
from hivewire.stored import Mode as Mode
from hivewire.stored import QueueSpec as QueueSpec
from hivewire.stored import Room as Room
from hivewire.stored import Saved as Saved
from hivewire.stored import Unfinished as Unfinished
from hivewire.stored import Waiting as Waiting

TRAIL_PREFIX = "trail/"
_PAGE = 1_000


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What the store does itself; the engine does the rest."""

    durability: Durability
    store_lanes: bool
    """True: the store leases keys (lanes) and hands out runs of them; a lane that waits for a retry waits
    in the store. False: a member owns whole shards, and lanes live in the engine."""
    store_competes: bool = False
    """Without `store_lanes`: the store hands out the records of `competing` queues one by one all the same. Not
    of internal queues, whose names begin with `~`."""
    lends_competing: bool = False
    """With `store_competes`: the store lends the records of those queues for a short time that cannot be made longer,
    and counts how often it did: each delivery counts as an attempt. It keeps no delay of a retry, no order of
    priority, and no account of duplicates and of what runs."""
    per_record_ack: bool = True
    """False: only a watermark and a small saved state can be stored (`Consumer.save`)."""
    settle_pace_s: float = 0.005
    """Of owned shards: outcomes that nobody waits for are stored at most so often. A kill repeats that much more."""
    delayed_append: bool = True
    store_dedup: bool = True
    """`Append.idempotency_key` is checked by the store."""
    remembers_settled: bool = True
    """`Fetched.seen` tells that this id was settled before, within the window."""
    finds_expired: bool = True
    """`Backend.bury_expired` finds messages whose time ran out although nobody reads."""
    by_reference: bool = False
    """Records never leave this process: `Record.kept` may stand for the body."""
    shared: bool = True
    """Other processes can reach the same store."""

    def leases_lanes(self, queue: str, *, competing: bool) -> bool:
        """Whether the store leases lanes of this queue, or records, rather than whole shards."""
        return self.store_lanes or (self.store_competes and competing and not queue.startswith("~"))


class Ownership(ABC):
    """The engine, as a consumer's driver sees it. Drivers renew leases from a thread of their own;
    these calls arrive on the event loop."""

    __slots__ = ()

    @abstractmethod
    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Hashable] = ()) -> None:
        """This member now owns the shard; `saved` is what the last `save` or `losing` stored, `settled` the
        lives (`record.life`) that were settled lately, where the store itself does not remember them."""

    @abstractmethod
    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        """The shards must be given up soon: finish what runs, start nothing. Returns what to save, without
        `per_record_ack`."""

    async def hand_over(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        """As `losing`; but what still runs after that time goes on, is told to `Consumer.hold` before the shards
        are given up, and its outcome to `Consumer.settle_held`."""
        raise NotImplementedError

    def expect(self, shard: int, away: Collection[int]) -> None:
        """Called with `gained`, before any record comes: the handlers of these still run at a member that gave the
        shard up, and their keys wait for `returned`."""
        raise NotImplementedError

    def returned(self, shard: int, token: int, at: int, back: Returned | None) -> None:
        """A record that was away is finished (None), or to be handled again here."""
        raise NotImplementedError

    def lost_held(self) -> None:
        """All that ran on after `hand_over` is with others by now."""
        raise NotImplementedError

    def busy(self, shards: Set[int]) -> Set[int]:
        """Those of the shards in which something runs or is handed out: a move that is not forced waits for
        them."""
        return shards

    def rest(self, shards: Set[int]) -> None:
        """Start nothing more in these shards, but keep what is held: a busy shard comes to rest, and can then
        be given up without stopping what runs. `go_on` takes it back. Only without `store_lanes`."""
        raise NotImplementedError

    def go_on(self, shards: Set[int]) -> None:
        """These shards stay, after all. Only without `store_lanes`."""
        raise NotImplementedError

    def news(self) -> None:
        """After a `fetch_now` that took all: there may be something now. Nothing is fetched within this call."""
        raise NotImplementedError

    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        """After a `fetch_now` that took all: here is what has come since, or why nothing comes. Nothing: after a time
        when nothing could, it can again."""
        raise NotImplementedError

    @abstractmethod
    def lost(self, shards: Set[int]) -> None:
        """The shards are with somebody else already: forget their records. With `store_lanes` there is
        one shard, 0: the member's lease ended."""


class Consumer(ABC):
    """One member's part of one queue."""

    __slots__ = ()

    tells: ClassVar[bool] = False
    """There are `fetch_now`, after which the owner is told when there is more, and `settle_soon`: no task need wait
    for each of many queues."""
    instant: ClassVar[bool] = False
    """Nothing waits for I/O: `settle_now` does at once what `settle` does."""

    @abstractmethod
    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        """Take up to `limit` records of at most `lanes` keys, at most `run` of each key, each key's in
        order; wait up to `wait_s` for the first. The first records of the first `starting` keys are marked
        as running in the same step if they are not suspect. Cancelling loses nothing: what was taken is
        given by the next call. The engine has one call under way at a time."""

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        """`fetch` without waiting, if `tells`, and whether that was all for now. If so, either the owner's `news` is
        called as soon as there may be more, perhaps from within `append`, or its `came` with what there is, taken as
        asked for here. The engine asks again after that, and not before."""
        raise NotImplementedError

    def ask_no_more(self) -> None:
        """What `fetch_now` has asked for is not wanted any more. What was taken for it all the same still comes."""
        return

    def settle_now(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        """`settle`, if `instant`."""
        raise NotImplementedError

    def settle_soon(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()
    ) -> asyncio.Future[Sequence[Fetched]]:
        """`settle`, begun at once, if `tells`."""
        raise NotImplementedError

    def holds(self, fetched: Fetched) -> bool:
        """Whether this member's lease is still good, by its own clock: asked before each start of a
        handler, so that a process that was frozen starts nothing that is somebody else's by now."""
        return True

    async def refetch(self, shard: int, at: Sequence[int | str]) -> Sequence[Fetched]:
        """The records at these positions of a shard again (a parked lane). Only without `store_lanes`."""
        raise NotImplementedError

    @abstractmethod
    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Store running marks with the counters in `batch`. Returns those refused: the lease is lost."""

    @abstractmethod
    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        """Store what became of these records: `done` first, then `rest`. Returns those refused because
        the lease was lost; for them nothing was changed. What was stored before, by a call whose answer was lost,
        is not refused: the repeat changes nothing. A lane whose taken records are all settled is
        free again."""

    async def hold(self, batch: Sequence[Fetched]) -> None:
        """These run on here when their shards are given up. Only for drivers that call `hand_over`."""
        raise NotImplementedError

    async def settle_held(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """As `settle`, for what `hold` was told of: to who owns the shards by now. What is finished by an earlier call
        whose answer was lost is not refused."""
        raise NotImplementedError

    async def save(self, shards: Mapping[int, Saved]) -> Set[int]:
        """Store how far shards are, fenced, in one round trip. Returns those that are somebody else's by now.
        Only without `per_record_ack`."""
        raise NotImplementedError

    @abstractmethod
    async def close(self) -> None:
        """Give back what is still held, unstarted, and leave. Idempotent."""


class Backend(ABC):
    """A store, seen as queues of opaque records. Every method that talks to the store raises
    `BackendError`; a batch is one round trip."""

    features: Features
    epoch: int = 0
    """Changes when an `agent/` or `group/` value of the catalogue has changed, in any process; as fresh
    as the last `fetch` or `append` of this process."""
    lost: int = 0
    """Messages that this process found to have been deleted by others."""

    def paused(self) -> int:
        """Shards from which this process takes nothing for now, because of what must be kept about others."""
        return 0

    def blobs(self) -> BlobStore | None:
        """Where this store keeps large contents if nothing else is said; None: nowhere. As widely shared and as
        durable as its queues."""
        return None

    @abstractmethod
    async def open(self) -> None:
        """Connect. Called once, before anything else."""

    @abstractmethod
    def now(self) -> float:
        """The store's clock, in seconds since the epoch."""

    @abstractmethod
    async def declare(self, spec: QueueSpec) -> QueueSpec:
        """Make the queue. An existing one is returned as it is, but for a mode that nobody decided yet."""

    @abstractmethod
    async def queues(self) -> Sequence[QueueSpec]: ...

    @abstractmethod
    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        """Store all records, or say by running number which were not and why (`QueueFull` …). When this
        returns, they are stored as durably as `features.durability` says. Queues that do not exist are
        made with their defaults."""

    crowded: bool = False
    """After `append_now`: others should have a turn now, await `give_way`."""

    def append_now(self, queue: str, record: Record, room: Room) -> bool:
        """Store one record if that takes no waiting at all. False: nothing was done, use `append`."""
        return False

    def append_soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
        """Begin to store one record in the plain case; the future is done when it is stored, or tells why it is not.
        None: nothing was done, use `append`."""
        return None

    async def give_way(self) -> None:
        """Let those read who have something to read. Needed only by who sets `crowded`."""
        raise NotImplementedError

    @abstractmethod
    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer: ...

    @abstractmethod
    async def depth(self, queue: str) -> Depth: ...

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        """What the queue holds, without taking it: first what waits or runs, then the delayed messages; with
        `delayed_only` these alone. Fewer than `limit` are the last ones there are. Slow: for people who look."""
        raise Unsupported(f"look into {queue}: this store cannot be looked through without taking")

    async def browse(self, queue: str, *, delayed_only: bool = False) -> AsyncIterator[Waiting]:
        """All that `peek` lists. It ends at the first page that is not full: also where others send without a pause."""
        after: str | None = None
        while True:
            page = await self.peek(queue, _PAGE, after, delayed_only=delayed_only)
            for waiting in page:
                yield waiting
            if len(page) < _PAGE:
                return
            after = page[-1].cursor

    async def find_delayed(self, queue: str, ids: Set[str]) -> Sequence[Waiting]:
        """Those of these messages that are not due yet."""
        return [waiting async for waiting in self.browse(queue, delayed_only=True) if waiting.record.id in ids]

    async def withdraw(self, queue: str, cursors: Sequence[str]) -> Sequence[str]:
        """Remove delayed messages, named by their cursors in `peek(delayed_only=True)`. Returns the cursors of
        those that were still there: they are never handed out, and nobody else is told that he removed them."""
        raise Unsupported(f"cancel delayed messages of {queue}: this store cannot remove them")

    @abstractmethod
    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        """Dead letters, oldest first."""

    @abstractmethod
    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        """Append dead letters to their queues again, `replay` + 1 and counters at zero, and take them
        from the dead letters, in one step where the store can. Returns how many."""

    @abstractmethod
    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int: ...

    async def bury_expired(self, queue: str | None = None) -> int:
        """Move messages whose time ran out, unread, to the dead letters: those of this queue, and of others only where
        that costs nothing more; None: of all queues."""
        return 0

    async def cleanup(self, older_than_s: float | None) -> int:
        """Forget settled ids, idempotency keys and notes older than that, or (None) what has outlived its own
        window; give space back. Never touches messages or dead letters."""
        return 0

    @abstractmethod
    async def get(self, key: str) -> Entry:
        """The catalogue: small values with versions, read fresh from the store."""

    @abstractmethod
    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        """Store the value if the present version is `version` (0: there is none); None if it is not."""

    @abstractmethod
    async def scan(self, prefix: str) -> Mapping[str, Entry]: ...

    async def add_to_trail(self, chunk: bytes, keep_s: float) -> None:
        """Store what happened to some messages, to be forgotten after `keep_s`. Kept in the catalogue, unless
        the store has a better place."""
        await self.put(f"{TRAIL_PREFIX}{self.now():017.6f}-{uuid4().hex[:12]}", chunk, 0, ttl_s=keep_s)

    async def trail(self) -> Mapping[str, Entry]:
        """All chunks that `add_to_trail` stored and nobody has forgotten, oldest first."""
        return dict(sorted((await self.scan(TRAIL_PREFIX)).items()))

    async def forget_trail(self, chunks: Mapping[str, Entry]) -> None:
        """Drop these chunks. Somebody else may have dropped them before."""
        for key, entry in chunks.items():
            await self.put(key, b"", entry.version, ttl_s=0.001)

    @abstractmethod
    async def drop_queue(self, queue: str) -> None:
        """Remove a queue and all in it: a reply mailbox, or that of an agent that is forgotten."""

    @abstractmethod
    async def publish(self, channel: str, body: bytes) -> None:
        """To whoever listens now, in any process; not stored."""

    @abstractmethod
    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        """What was published on the channel since the last call (from the first call on)."""

    def abandon(self) -> None:
        """As if this process was killed: nothing is given back, leases run out. For tests, where there
        is no process to kill."""
        raise Unsupported("this store is shared by processes: kill one instead")

    @abstractmethod
    async def health(self) -> BackendHealth: ...

    @abstractmethod
    async def close(self) -> None: ...
