"""A simulated store that behaves like SQL tables: it leases keys and hands out runs of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random
from typing import ClassVar

import msgspec

from hivewire.backend import Again, Back, Dead, Depth, Features, Fetched, Member, Ownership, Record, Unfinished
from hivewire.testing.profiles_driver import ProfileBackend, ProfileConsumer, process_of, settling
from hivewire.testing.profiles_faults import Faults
from hivewire.testing.profiles_world import SETTLED_WINDOW_S, World


class Row(msgspec.Struct, gc=False):
    """One stored message."""

    number: int
    lane: str
    record: Record
    stored_at: float
    due_at: float
    starts: int = 0
    failures: int = 0
    crashes: int = 0
    died: int = 0
    is_running: bool = False
    is_taken: bool = False
    is_suspect: bool = False


class Lane(msgspec.Struct):
    """The messages of one key, and who leases them."""

    rows: list[Row] = []
    owner: str = ""
    token: int = 0


class Table(msgspec.Struct):
    """One queue."""

    rows: dict[int, Row] = {}
    lanes: dict[str, Lane] = {}
    scheduled: list[tuple[float, int]] = []
    settled: dict[tuple[str, int], float] = {}


class SqlWorld(World):
    """The database: tables, leases of members, and what a member that died was doing."""

    features: ClassVar[Features] = Features(durability="process", store_lanes=True)

    def __init__(self, faults: Faults, chance: Random) -> None:
        super().__init__(faults, chance)
        self.tables: dict[str, Table] = {}
        self._leases: dict[str, dict[str, tuple[float, int]]] = {}
        """Until when, and the number of the lease."""

    def _table(self, queue: str) -> Table:
        table = self.tables.get(queue)
        if table is None:
            table = self.tables[queue] = Table()
        return table

    # Members

    def _of(self, queue: str) -> dict[str, tuple[float, int]]:
        """The leases of a queue's members."""
        leases = self._leases.get(queue)
        if leases is None:
            leases = self._leases[queue] = {}
        return leases

    def renew(self, queue: str, process: str, lease_s: float, life: int) -> int:
        """Extend the member's lease of this number, or begin a new one (0). Gives its number; 0: it had ended."""
        self._bury_members(queue)
        _, present = self._of(queue).get(process, (0.0, 0))
        if life != present:
            if life:
                return 0
            self._of(queue).pop(process, None)
            self._inherit(queue, process)
        life = life or self.next_number()
        self._of(queue)[process] = (self.now() + lease_s, life)
        return life

    def leave(self, queue: str, process: str) -> None:
        """The member gives back what it holds."""
        for lane in self._table(queue).lanes.values():
            if lane.owner == process:
                lane.owner = ""
                for row in lane.rows:
                    row.starts -= row.is_running  # marked as it was taken, and its handler was never started
                    row.is_taken = row.is_running = False
        self._of(queue).pop(process, None)
        self.ring(queue)

    def _bury_members(self, queue: str) -> None:
        now = self.now()
        leases = self._of(queue)
        for process in [process for process, (until, _) in leases.items() if until <= now]:
            del leases[process]
            self._inherit(queue, process)

    def _inherit(self, queue: str, process: str) -> None:
        """The member died: free its lanes and keep what it was doing."""
        lanes = [lane for lane in self._table(queue).lanes.values() if lane.owner == process]
        marked = sum(row.is_running for lane in lanes for row in lane.rows)
        for lane in lanes:
            lane.owner = ""
            for row in lane.rows:
                if row.is_running:
                    row.died = marked
                row.is_suspect = row.is_suspect or row.is_taken
                row.is_taken = row.is_running = False
        self.ring(queue)

    def owns(self, process: str, queue: str, key: str) -> bool:
        lane = self._table(queue).lanes.get(key)
        if lane is None or process_of(lane.owner) != process:
            return False
        until, _ = self._of(queue).get(lane.owner, (0.0, 0))
        return until > self.now()

    # Rows

    def store(self, queue: str, record: Record, delay_s: float) -> None:
        table = self._table(queue)
        number = self.next_number()
        row = Row(number, self.lane_of(queue, record), record, self.now(), self.now() + delay_s)
        table.rows[number] = row
        if delay_s > 0:
            heapq.heappush(table.scheduled, (row.due_at, number))
        else:
            self._ready(table, row)

    def _ready(self, table: Table, row: Row) -> None:
        lane = table.lanes.get(row.lane)
        if lane is None:
            lane = table.lanes[row.lane] = Lane()
        lane.rows.append(row)

    def _mature(self, queue: str) -> None:
        self._bury_members(queue)
        table = self._table(queue)
        while table.scheduled and table.scheduled[0][0] <= self.now():
            _, number = heapq.heappop(table.scheduled)
            if number in table.rows:
                self._ready(table, table.rows[number])

    def claim(
        self, queue: str, process: str, life: int, limit: int, lanes: int, run: int, starting: int
    ) -> list[Fetched]:
        """Lease lanes that wait and take runs of them."""
        self._mature(queue)
        table, now = self._table(queue), self.now()
        if self._of(queue).get(process, (0.0, 0))[1] != life:
            return []
        free = [lane for lane in table.lanes.values() if not lane.owner and lane.rows and lane.rows[0].due_at <= now]
        free.sort(key=lambda lane: (-lane.rows[0].record.priority, lane.rows[0].number))
        taken: list[Fetched] = []
        for index, lane in enumerate(free[:lanes]):
            if len(taken) >= limit:
                break
            lane.owner, lane.token = process, self.next_number()
            for row in lane.rows[: min(run, limit - len(taken))]:
                if row.due_at > now:
                    break
                is_first = row is lane.rows[0]
                taken.append(self._hand_out(queue, lane, row, mark=is_first and index < starting))
        return taken

    def _hand_out(self, queue: str, lane: Lane, row: Row, *, mark: bool) -> Fetched:
        row.is_taken = True
        marked = mark and not row.is_suspect
        if marked:
            row.is_running = True
            row.starts += 1
            self.note("marked", queue, row.record, lane.owner)
        settled_at = self._table(queue).settled.get((row.record.id, row.record.replay), -SETTLED_WINDOW_S)
        return Fetched(
            shard=0,
            at=row.number,
            token=lane.token,
            record=row.record,
            stored_at=row.stored_at,
            starts=row.starts,
            failures=row.failures,
            crashes=row.crashes,
            died=row.died,
            suspect=row.is_suspect,
            marked=marked,
            seen=settled_at + SETTLED_WINDOW_S > self.now(),
        )

    def has_some(self, queue: str) -> bool:
        """Whether a claim would find anything."""
        self._mature(queue)
        now = self.now()
        return any(
            not lane.owner and lane.rows and lane.rows[0].due_at <= now for lane in self._table(queue).lanes.values()
        )

    def start(self, queue: str, process: str, batch: Sequence[Fetched]) -> list[Fetched]:
        refused = []
        for fetched in batch:
            row = self._taken(queue, process, fetched) if self._has_lease(queue, process, fetched) else None
            if row is None:
                refused.append(fetched)
                continue
            _copy_counters(fetched, row)
            row.is_running = True
            self.note("marked", queue, row.record, process)
        return refused

    def settle(self, queue: str, process: str, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> list[Fetched]:
        refused = []
        table = self._table(queue)
        for fetched in done:
            if not self._has_lease(queue, process, fetched):
                refused.append(fetched)
            elif row := self._taken(queue, process, fetched):
                table.settled[row.record.id, row.record.replay] = self.now()
                self.note("settled", queue, row.record, process)
                self._remove(table, row)
        for unfinished in rest:
            if not self._has_lease(queue, process, unfinished.fetched):
                refused.append(unfinished.fetched)
            elif row := self._taken(queue, process, unfinished.fetched):
                self._put_back(queue, row, unfinished)
        for fetched in refused:
            self.note("refused", queue, fetched.record, process)
        if self.has_some(queue):
            self.ring(queue)
        return refused

    def _put_back(self, queue: str, row: Row, unfinished: Unfinished) -> None:
        table = self._table(queue)
        if isinstance(unfinished, Dead):
            table.settled[row.record.id, row.record.replay] = self.now()
            self.bury(queue, row.record, unfinished.letter)
            self._remove(table, row)
            return
        _copy_counters(unfinished.fetched, row)
        row.is_taken = row.is_running = False
        if isinstance(unfinished, Again):
            row.due_at = self.now() + unfinished.delay_s
        assert isinstance(unfinished, Again | Back)
        self._free_if_settled(table, row.lane)

    def _has_lease(self, queue: str, process: str, fetched: Fetched) -> bool:
        """Whether the lease under which the member took this is still good."""
        self._bury_members(queue)
        _, life = self._of(queue).get(process, (0.0, 0))
        return fetched.token > life > 0  # a lower one was taken in an earlier life

    def _taken(self, queue: str, process: str, fetched: Fetched) -> Row | None:
        """The row, if this member has it by this token and has not settled it."""
        assert isinstance(fetched.at, int)
        table = self._table(queue)
        row = table.rows.get(fetched.at)
        lane = table.lanes.get(row.lane) if row is not None else None
        if row is None or lane is None or lane.owner != process or lane.token != fetched.token or not row.is_taken:
            return None
        return row

    def _remove(self, table: Table, row: Row) -> None:
        del table.rows[row.number]
        lane = table.lanes[row.lane]
        lane.rows.remove(row)
        self._free_if_settled(table, row.lane)

    def _free_if_settled(self, table: Table, name: str) -> None:
        lane = table.lanes[name]
        if not any(row.is_taken for row in lane.rows):
            lane.owner = ""
            if not lane.rows:
                del table.lanes[name]

    # Looking

    def next_due(self, queue: str) -> float | None:
        table = self._table(queue)
        due = [until for until, _ in self._of(queue).values()]
        due.extend(lane.rows[0].due_at for lane in table.lanes.values() if lane.rows and not lane.owner)
        if table.scheduled:
            due.append(table.scheduled[0][0])
        return min((when for when in due if when > self.now()), default=None)

    def held(self, queue: str) -> int:
        self._mature(queue)
        return len(self._table(queue).rows)

    def depth(self, queue: str) -> Depth:
        self._mature(queue)
        table, now = self._table(queue), self.now()
        taken = sum(row.is_taken for row in table.rows.values())
        later = sum(row.due_at > now for row in table.rows.values() if not row.is_taken)
        oldest = min((row.stored_at for row in table.rows.values()), default=now)
        return Depth(
            ready=len(table.rows) - taken - later,
            in_flight=taken,
            scheduled=later,
            dead=sum(dead.queue == queue for dead in self.letters),
            oldest_age_s=now - oldest,
        )

    def bury_expired(self) -> int:
        buried = 0
        for queue, table in self.tables.items():
            self._mature(queue)
            for row in list(table.rows.values()):
                ttl = row.record.ttl_s
                if ttl is None or row.stored_at + ttl > self.now() or row.is_taken:
                    continue
                self.bury(queue, row.record, self.expiry_letter(row.stored_at))
                if row.due_at > row.stored_at and not self._is_in_lane(table, row):
                    del table.rows[row.number]
                else:
                    self._remove(table, row)
                buried += 1
        return buried

    def _is_in_lane(self, table: Table, row: Row) -> bool:
        """False while it waits to fall due for the first time."""
        return row.lane in table.lanes and row in table.lanes[row.lane].rows

    def forget(self, queue: str) -> None:
        self.tables.pop(queue, None)


def _copy_counters(fetched: Fetched, row: Row) -> None:
    row.starts, row.failures, row.crashes = fetched.starts, fetched.failures, fetched.crashes
    row.died, row.is_suspect = fetched.died, fetched.suspect


class SqlConsumer(ProfileConsumer[SqlWorld]):
    """A member that renews one lease for all its lanes."""

    def __init__(self, backend: SqlBackend, queue: str, member: Member, owner: Ownership) -> None:
        super().__init__(backend, queue, member, owner)
        self._life = 0

    async def _tick(self) -> None:
        self._check_lease()
        sent_at = self.world.loop.time()
        asked = self._life
        life = await self.wire.call(
            ("renew",), lambda: self.world.renew(self.queue, self.name, self.member.lease_s, asked)
        )
        if asked and (not life or self.is_late()):
            # Refused, or the answer came when `holds` had said no already: the engine has let go.
            self._give_up()
            return
        self._life = life
        self.safe_until = sent_at + self.member.lease_s
        if not asked:
            self.world.ring(self.queue)  # a fetch may be waiting for the lease

    def _give_up(self) -> None:
        if self._life:
            self._life = 0
            self._kept.clear()
            self.owner.lost({0})

    def _is_held(self, fetched: Fetched) -> bool:
        return fetched.token > self._life > 0  # a lower one was taken in an earlier life

    def _finds_some(self) -> bool:
        return self.world.has_some(self.queue)

    def _take(self, limit: int, lanes: int, run: int, starting: int) -> list[Fetched]:
        return self.world.claim(self.queue, self.name, self._life, limit, lanes, run, starting) if self._life else []

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

    async def _leave(self) -> None:
        await self.wire.call(("leave",), lambda: self.world.leave(self.queue, self.name))


class SqlBackend(ProfileBackend[SqlWorld]):
    """A connection to the database."""

    def _consumer(self, queue: str, member: Member, owner: Ownership) -> SqlConsumer:
        return SqlConsumer(self, queue, member, owner)
