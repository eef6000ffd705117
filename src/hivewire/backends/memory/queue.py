"""A queue in memory: lanes leased to members. Plain data and rules; waiting and waking is in `consumer`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import Protocol, TypeVar

import msgspec

from hivewire.backend import Depth, Fetched, QueueSpec, Record, life
from hivewire.rules.dedup import Window
from hivewire.rules.priority import Lines

MOMENT = 1_000
_T = TypeVar("_T", bound=tuple[object, ...])
Heap = list[_T] | tuple[()]
"""The tuple until the first is pushed: of tens of thousands of queues most have nothing that is due later."""


def _pushed(heap: Heap[_T], item: _T) -> list[_T]:
    """The heap with the item."""
    made = heap if isinstance(heap, list) else []
    heappush(made, item)
    return made


class Reader(Protocol):
    """Who may wait at a queue."""

    def wake(self) -> None:
        """There may be something."""


class Holder:
    """Who has taken lanes. `lease_until` None: renewed for as long as it lives."""

    __slots__ = ("lanes", "lease_until", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lease_until: float | None = None
        self.lanes: dict[Lane, None] | None = None
        """Made with the first that it takes."""

    def hold(self, lane: Lane) -> None:
        if self.lanes is None:
            self.lanes = {}
        self.lanes[lane] = None

    def let_go(self, lane: Lane) -> None:
        if self.lanes is not None:
            self.lanes.pop(lane, None)

    def held(self) -> tuple[Lane, ...]:
        return tuple(self.lanes or ())


class Lane:
    """The records of one key, the oldest first, and what is known about the first."""

    __slots__ = ("due_at", "holder", "key", "records", "running", "taken", "token")

    def __init__(self, key: str) -> None:
        self.key = key
        self.records: deque[Fetched] = deque()
        self.holder: Holder | None = None
        self.token = 0
        self.taken = 0
        self.due_at: float | None = None
        self.running: Fetched | None = None
        """The taken record that has a running mark. Outcomes of those before it may still be on their way."""

    def has_taken(self, fetched: Fetched) -> bool:
        return any(each is fetched for each in islice(self.records, self.taken))


def _priority(lane: Lane) -> int:
    return lane.records[0].record.priority


class Queue:
    """One queue. A lane is in exactly one state: ready, waiting for its retry, or held."""

    __slots__ = (
        "_now", "_tokens", "blocked", "expiring", "idempotent", "in_flight", "lanes", "positions", "readers", "ready",
        "scheduled", "settled", "size", "spec",
    )  # fmt: skip

    def __init__(self, spec: QueueSpec, now: Callable[[], float], tokens: Iterator[int], window: Window) -> None:
        self.spec = spec
        self.lanes: dict[str, Lane] = {}
        self.ready = Lines(_priority)
        self.blocked: Heap[tuple[float, int, Lane]] = ()
        self.scheduled: Heap[tuple[float, int, Record, float]] = ()
        self.expiring: Heap[tuple[float, int, str]] = ()
        self.settled = window
        self.size = 0
        self.in_flight = 0
        self.idempotent: dict[str, tuple[str, float, float]] = {}
        """By key: the id that it was used for, when, and until when it counts."""
        self.readers: list[Reader] = []
        self._now = now
        self._tokens = tokens
        self.positions = count()

    # -- storing

    def room(self, reserve: bool) -> int:
        cap = self.spec.cap
        return cap + (max(cap // 10, 100) if reserve else 0) - self.size

    def append(self, records: Sequence[Record], now: float) -> None:
        lanes = self.lanes
        competing = self.spec.mode == "competing"
        filled: list[Lane] = []
        last: str | None = None
        for at, record in zip(self.positions, records):  # noqa: B905  # positions never end
            key = record.id if competing else record.key
            if key != last:  # runs of one key are common
                last = key
                lane = lanes.get(key)
                if lane is None:
                    lane = lanes[key] = Lane(key)
                line = lane.records
                if not line and lane.holder is None and lane.due_at is None:
                    filled.append(lane)
            line.append(Fetched(0, at, 0, record, now))
            if record.ttl_s is not None:
                self.expiring = _pushed(self.expiring, (now + record.ttl_s, at, key))
        self.size += len(records)
        for lane in filled:
            self.ready.append(lane)
        if filled:
            self.notify()

    def schedule(self, records: Sequence[Record], now: float, due_at: float) -> None:
        for record in records:
            self.scheduled = _pushed(self.scheduled, (due_at, next(self.positions), record, now))
        self.size += len(records)
        self.notify()  # a waiting member must set its timer anew

    def forget(self, reader: Reader) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def notify(self) -> None:
        for reader in tuple(self.readers):
            reader.wake()

    @property
    def is_behind(self) -> bool:
        """Somebody reads here and has more to do than a moment's work."""
        return self.size > MOMENT and bool(self.readers)

    # -- time

    def advance(self, now: float) -> None:
        """Move what has fallen due."""
        while type(self.scheduled) is list and self.scheduled and self.scheduled[0][0] <= now:
            _, _, record, stored_at = heappop(self.scheduled)
            self.size -= 1
            self.append([record], stored_at)
        while type(self.blocked) is list and self.blocked and self.blocked[0][0] <= now:
            due_at, _, lane = heappop(self.blocked)
            if lane.due_at == due_at and lane.holder is None:
                lane.due_at = None
                self.ready.append(lane)
                self.notify()

    def next_due(self) -> float | None:
        first = [heap[0][0] for heap in (self.scheduled, self.blocked) if heap]
        return min(first) if first else None

    # -- taking

    def take(self, holder: Holder, limit: int, lanes: int, run: int, starting: int) -> list[Fetched]:
        taken: list[Fetched] = []
        settled = self.settled
        while self.ready and limit > 0 and lanes > 0:
            lane = self.ready.popleft()
            if lane.holder is not None or lane.due_at is not None or not lane.records:
                continue  # emptied or taken since it was put there
            lane.holder = holder
            lane.token = token = next(self._tokens)
            holder.hold(lane)
            number = min(len(lane.records), run, limit)
            first = len(taken)
            if number == len(lane.records):
                taken.extend(lane.records)
            else:
                taken.extend(islice(lane.records, number))
            new, old = settled.new, settled.old
            for fetched in taken if first == 0 else taken[first:]:
                fetched.token = token
                record = fetched.record
                known = life(record) if record.replay else record.id
                if known in new or known in old:
                    fetched.seen = True
            lane.taken = number
            head = taken[first]
            head.marked = starting > 0 and not head.suspect
            if head.marked:
                lane.running = head
                head.starts += 1
            starting -= 1
            limit -= number
            lanes -= 1
        self.in_flight += len(taken)
        return taken

    def held(self, holder: Holder, fetched: Fetched) -> Lane | None:
        """The lane, if `fetched` is its first record and still this holder's."""
        record = fetched.record
        lane = self.lanes.get(record.id if self.spec.mode == "competing" else record.key)
        if lane is None:  # stored before the queue's mode was decided
            lane = self.lanes.get(record.key)
        if lane is None or lane.holder is not holder or lane.token != fetched.token:
            return None
        if holder.lease_until is not None and holder.lease_until <= self._now():
            return None
        return lane

    def finish(self, holder: Holder, done: Sequence[Fetched], now: float, refused: list[Fetched]) -> None:
        """Remove records that were handled. Those of one lane come one after another: it is looked up once."""
        self.settled.tidy(now)
        settled = self.settled.new
        lane: Lane | None = None
        token, left = -1, 0
        records: deque[Fetched] = deque()
        before = len(refused)
        for fetched in done:
            if fetched.token != token:
                if lane is not None:
                    self._left(lane, left)
                lane, token = self.held(holder, fetched), fetched.token
                if lane is None:
                    left = 0
                else:
                    left, records = lane.taken, lane.records
            if not left:
                refused.append(fetched)
                continue
            if records[0] is fetched:
                records.popleft()
            else:  # handled out of turn
                records.remove(fetched)
            record = fetched.record
            settled[life(record) if record.replay else record.id] = None
            left -= 1
        if lane is not None:
            self._left(lane, left)
        finished = len(done) - len(refused) + before
        self.in_flight -= finished
        self.size -= finished

    def _left(self, lane: Lane, left: int) -> None:
        """So many taken records of the lane are not settled yet."""
        if left != lane.taken:
            lane.taken = left
            if not left:
                self.release(lane)
            elif lane.running is not None and not lane.has_taken(lane.running):
                lane.running = None

    def pop(self, lane: Lane, fetched: Fetched) -> None:
        """Remove a taken record for good."""
        if lane.records[0] is fetched:
            lane.records.popleft()
        else:  # given back or settled out of turn
            lane.records.remove(fetched)
        if lane.running is fetched:
            lane.running = None
        lane.taken -= 1
        self.in_flight -= 1
        self.size -= 1
        if not lane.taken:
            self.release(lane)

    def put_back(self, lane: Lane, fetched: Fetched, due_at: float | None) -> None:
        """A taken record is not held any more but stays in its place."""
        if lane.running is fetched:
            lane.running = None
        lane.taken -= 1
        self.in_flight -= 1
        if due_at is not None:
            lane.due_at = due_at
        if not lane.taken:
            self.release(lane)

    def release(self, lane: Lane, *, first: bool = False) -> None:
        """The lane is free. `first`: what it holds was taken before all that waits, so it goes before it."""
        if lane.holder is not None:
            lane.holder.let_go(lane)
        lane.holder = None
        lane.taken = 0
        lane.running = None
        if not lane.records:
            self.lanes.pop(lane.key, None)
            return
        if lane.due_at is not None:
            self.blocked = _pushed(self.blocked, (lane.due_at, next(self.positions), lane))
        elif first:
            self.ready.appendleft(lane)
        else:
            self.ready.append(lane)
        self.notify()

    def died(self, holder: Holder) -> None:
        """The holder's lease ended: its lanes go to others, with what is known of its death."""
        running = sum(lane.running is not None for lane in holder.held())
        # Each goes before all that waits, so the oldest of them comes last.
        for lane in sorted(holder.held(), key=lambda lane: lane.records[0].at if lane.records else 0, reverse=True):
            self.in_flight -= lane.taken
            # Fresh copies: the dead member may still hold the old ones and must not change them.
            lane.records = deque(
                msgspec.structs.replace(
                    fetched,
                    token=0,
                    marked=False,
                    suspect=fetched.suspect or place < lane.taken,
                    died=running if fetched is lane.running else fetched.died,
                )
                for place, fetched in enumerate(lane.records)
            )
            self.release(lane, first=True)

    # -- the rest

    def bury_expired(self, now: float, dead: Callable[[Fetched], None]) -> int:
        expired: dict[str, set[int]] = {}
        while type(self.expiring) is list and self.expiring and self.expiring[0][0] <= now:
            _, at, key = heappop(self.expiring)
            expired.setdefault(key, set()).add(at)
        buried = 0
        for key, positions in expired.items():
            lane = self.lanes.get(key)
            if lane is not None:
                buried += self._bury(lane, positions, dead)
        return buried

    def _bury(self, lane: Lane, positions: set[int], dead: Callable[[Fetched], None]) -> int:
        """Take these records out of a lane, but for those that somebody holds: their time is looked at when
        they are handed out. Returns how many became dead letters."""
        records = list(lane.records)
        held = {life(fetched.record) for fetched in records[: lane.taken]}
        for fetched in records[lane.taken :] if held else ():
            if fetched.at in positions and life(fetched.record) in held:
                # It was sent twice, and what becomes of the first one is not known yet: it is looked at again.
                positions.remove(fetched.at)
                self.expiring = _pushed(self.expiring, (self._now(), fetched.at, lane.key))
        gone = [fetched for fetched in records[lane.taken :] if fetched.at in positions]
        if not gone:
            return 0
        if lane.due_at is not None and records[0].at in positions:
            lane.due_at = None  # the retry that the lane waited for
            self.ready.append(lane)
            self.notify()
        lane.records = deque(records[: lane.taken])
        lane.records.extend(fetched for fetched in records[lane.taken :] if fetched.at not in positions)
        self.size -= len(gone)
        buried, now = 0, self._now()
        for fetched in gone:
            name = life(fetched.record)
            if name not in self.settled:  # else it was sent twice, and the first one has come to its end
                self.settled.add(name, now)
                dead(fetched)
                buried += 1
        if not lane.records and lane.holder is None:
            self.lanes.pop(lane.key, None)
        return buried

    def forget_settled_times(self) -> None:
        """Times to live of messages that are not here any more are not kept until they run out."""
        if len(self.expiring) > 2 * self.size + MOMENT:
            present = {fetched.at for lane in self.lanes.values() for fetched in lane.records}
            self.expiring = [entry for entry in self.expiring if entry[1] in present]
            heapify(self.expiring)

    def depth(self, dead: int) -> Depth:
        now = self._now()
        waiting = sum(lane.due_at is not None for _, _, lane in self.blocked)
        scheduled = len(self.scheduled) + waiting
        oldest = min((lane.records[0].stored_at for lane in self.lanes.values() if lane.records), default=now)
        return Depth(
            ready=self.size - self.in_flight - scheduled,
            in_flight=self.in_flight,
            scheduled=scheduled,
            dead=dead,
            oldest_age_s=max(0.0, now - oldest),
        )
