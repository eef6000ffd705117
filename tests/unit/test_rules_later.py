"""A delayed message is moved or cancelled, never both, never neither: over crashes, compaction and changes of owner."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from hivewire.rules.later import Agenda, Later

SHARDS = 2
STALE = 1.0


class Line(msgspec.Struct, frozen=True):
    """Of the log. Without `stored`, `claims` and `cancels`: its name leaves."""

    at: int
    name: bytes
    made_at: float
    stored: tuple[int, float] | None = None
    claims: tuple[int, ...] | None = None
    cancels: tuple[int, ...] | None = None


class Process:
    """Who reads the log, and what it is in the middle of."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.reached = 0
        self.won: dict[bytes, list[int]] = {}


class Log(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []
        self.end = 0
        self.now = 0.0
        self.names = count()
        self.processes = [Process() for _ in range(3)]
        self.stored: dict[int, int] = {}
        """Ids of messages by the offset of one of their sends."""
        self.moved: set[int] = set()
        self.cancelled: set[int] = set()

    cancels = Bundle("cancels")
    moves = Bundle("moves")

    def write(self, name: bytes | None = None, **what: object) -> Line:
        line = Line(self.end, name or b"%d" % next(self.names), self.now, **what)  # type: ignore[arg-type]
        self.lines.append(line)
        self.end += 1
        return line

    def read(self, process: Process) -> None:
        agenda = process.agenda
        for line in self.lines:
            if line.at < process.reached:
                continue
            if line.stored is not None:
                id, due_at = line.stored
                agenda.stored(Later(line.at, line.name, (str(id), 0), due_at, spread=id))
            elif line.claims is not None:
                agenda.claimed(line.name, line.claims, line.made_at)
            elif line.cancels is not None:
                won = agenda.cancelled(line.name, line.cancels, line.made_at)
                assert process.won.setdefault(line.name, won) == won
            else:
                agenda.removed(line.name)
        process.reached = self.end

    def remove(self, names: Iterable[bytes], few: int) -> None:
        """As many as were written before the process died."""
        for name in tuple(names)[:few]:
            self.write(name)

    @rule(id=st.integers(0, 5), delay=st.integers(1, 12))
    def store(self, id: int, delay: int) -> None:
        """Perhaps again: its confirmation was lost. What is moved or cancelled is not sent again here: it would be
        another life."""
        if id not in self.moved | self.cancelled and not self._is_decided(id):
            line = self.write(stored=(id, self.now + delay))
            self.stored[line.at] = id

    def _is_decided(self, id: int) -> bool:
        ats = {at for at, other in self.stored.items() if other == id}
        return any(ats & {*(line.cancels or ()), *(line.claims or ())} for line in self.lines)

    @rule(by=st.integers(1, 4))
    def time_goes_on(self, by: int) -> None:
        self.now += by

    @rule(who=st.integers(0, 2))
    def catches_up(self, who: int) -> None:
        self.read(self.processes[who])

    @rule(who=st.integers(0, 2))
    def dies(self, who: int) -> None:
        self.processes[who] = Process()

    @rule(target=cancels, who=st.integers(0, 2), ids=st.sets(st.integers(0, 5), min_size=1))
    def begins_to_cancel(self, who: int, ids: set[int]) -> tuple[Process, Line]:
        process = self.processes[who]
        ats = [at for at in process.agenda.known if self.stored[at] in ids]
        return process, self.write(cancels=tuple(ats))

    @rule(begun=consumes(cancels), few=st.integers(0, 12))
    def cancels_it(self, begun: tuple[Process, Line], few: int) -> None:
        process, line = begun
        if process not in self.processes:
            return
        self.read(process)
        self.remove(process.agenda.names_by(line.name), few)

    @rule(
        target=moves,
        who=st.integers(0, 2),
        owned=st.sets(st.integers(0, SHARDS - 1)),
        limit=st.integers(1, 4),
        fast=st.integers(0, 12),
    )
    def begins_to_move(self, who: int, owned: set[int], limit: int, fast: int) -> tuple[Process, list[Later]]:
        """By a clock that may be fast."""
        process = self.processes[who]
        due, _ = process.agenda.due(self.now + fast, owned, SHARDS, limit)
        free = [later.at for later in due if later.claim is None]
        if free:
            self.write(claims=tuple(free))
        return process, due

    @rule(begun=consumes(moves), few=st.integers(0, 12))
    def moves_it(self, begun: tuple[Process, list[Later]], few: int) -> None:
        process, due = begun
        if process not in self.processes:
            return
        self.read(process)
        claimed = [later for later in due if later.claim is not None and later.at in process.agenda.known]
        self.moved |= {self.stored[later.at] for later in claimed}
        self.remove(process.agenda.names_of(claimed), few)

    @rule(who=st.integers(0, 2), few=st.integers(0, 12))
    def clears_away(self, who: int, few: int) -> None:
        process = self.processes[who]
        self.remove(process.agenda.stale(self.now - STALE), few)

    @rule(share=st.floats(0, 1), tombstones=st.booleans())
    def compacted(self, share: float, tombstones: bool) -> None:
        """Not what somebody has yet to read."""
        upto = int(share * min((process.reached for process in self.processes if process.reached), default=self.end))
        last = {line.name: line.at for line in self.lines if line.at < upto}
        self.lines = [
            line
            for line in self.lines
            if line.at >= upto
            or (last[line.name] == line.at and (not tombstones or line.stored or line.claims or line.cancels))
        ]

    @invariant()
    def never_both(self) -> None:
        for process in self.processes:
            for won in process.won.values():
                self.cancelled |= {self.stored[at] for at in won}
        assert not self.moved & self.cancelled

    def teardown(self) -> None:
        """Who comes last moves the rest, and leaves nothing."""
        self.now += 100
        for process in [*self.processes, Process()]:
            self.read(process)
            self.never_both()
        self.processes = [Process()]
        (process,) = self.processes
        self.read(process)
        while due := process.agenda.due(self.now, {0, 1}, SHARDS, 3)[0]:
            free = [later.at for later in due if later.claim is None]
            if free:
                self.write(claims=tuple(free))
                self.read(process)
            assert all(later.claim is not None for later in due)
            self.moved |= {self.stored[later.at] for later in due}
            self.remove(process.agenda.names_of(due), 1_000)
            self.read(process)
        self.never_both()
        assert self.moved | self.cancelled == set(self.stored.values())
        self.now += 100
        self.remove(process.agenda.stale(self.now - STALE), 1_000)
        self.compacted(1.0, tombstones=False)
        self.read(process)
        self.compacted(1.0, tombstones=True)
        assert not self.lines


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=150, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])


def test_repeated_sends_are_one_message_and_the_last_one_counts() -> None:
    agenda = Agenda()
    for at in range(3):
        agenda.stored(Later(at, b"%d" % at, ("id", 0), 10.0 + at, spread=5))
    assert list(agenda.known) == [2]
    assert agenda.due(11.5, {1}, 2, 10) == ([], 12.0)
    (found,), again_at = agenda.due(12.0, {1}, 2, 10)
    assert (found.at, again_at) == (2, None)
    agenda.claimed(b"c", [1, 2], 12.0)
    assert agenda.names_of([found]) == [b"0", b"1", b"2", b"c"]


def test_foreign_shards_wait_for_their_owner_and_nothing_is_forgotten() -> None:
    agenda = Agenda()
    for at in range(4):
        agenda.stored(Later(at, b"%d" % at, (str(at), 0), 1.0 + at, spread=at))
    assert agenda.due(0.5, {0}, 2, 10) == ([], 1.0)
    assert [later.at for later in agenda.due(10.0, {0}, 2, 10)[0]] == [0, 2]
    assert [later.at for later in agenda.due(10.0, {1}, 2, 10)[0]] == [1, 3]
    found, again_at = agenda.due(10.0, {0, 1}, 2, 3)
    assert ([later.at for later in found], again_at) == ([0, 1, 2], 10.0)


def test_a_name_that_is_used_again_takes_the_place_of_the_first() -> None:
    """As versions did that knew no claims; the brokers forget the first one."""
    agenda = Agenda()
    agenda.stored(Later(0, b"k", ("id", 0), 1.0, spread=0))
    agenda.claimed(b"c", [0], 2.0)
    agenda.stored(Later(1, b"k", ("id", 0), 1.5, spread=0))
    assert list(agenda.known) == [1]
    agenda.removed(b"k")
    assert (agenda.known, agenda.stale(3.0)) == ({}, [b"c"])


def test_a_claim_stays_until_all_that_it_took_is_moved() -> None:
    agenda = Agenda()
    for at in range(2):
        agenda.stored(Later(at, b"%d" % at, (str(at), 0), 1.0, spread=at))
    agenda.claimed(b"c", [0, 1], 1.0)
    assert agenda.names_of([agenda.known[0]]) == [b"0"]
    agenda.removed(b"0")
    assert agenda.stale(100.0) == []
    assert agenda.names_of([agenda.known[1]]) == [b"1", b"c"]


def test_only_what_is_to_come_is_cancelled() -> None:
    agenda = Agenda()
    for at in range(3):
        agenda.stored(Later(at, b"%d" % at, (str(at), 0), 5.0 + at, spread=at))
    assert [agenda.is_to_come(0, now) for now in (4.9, 5.0, 5.1)] == [True, False, False]
    assert agenda.is_to_come(9, 0.0) is False
    assert agenda.cancelled(b"x", [0, 1, 2, 9], made_at=6.0) == [2]
    assert list(agenda.known) == [0, 1]
    assert agenda.names_by(b"x") == [b"2", b"x"]
    assert (agenda.stale(6.0), agenda.stale(6.1)) == ([], [b"2", b"x"])
    agenda.removed(b"x")
    assert (agenda.names_by(b"x"), agenda.stale(100.0)) == ([], [])


def test_a_send_that_is_repeated_while_the_first_is_moved_is_one_of_its_own() -> None:
    agenda = Agenda()
    agenda.stored(Later(0, b"0", ("id", 0), 1.0, spread=0))
    agenda.claimed(b"c", [0], 1.0)
    agenda.stored(Later(1, b"1", ("id", 0), 2.0, spread=0))
    assert list(agenda.known) == [0, 1]
    agenda.removed(b"0")
    agenda.stored(Later(2, b"2", ("id", 0), 3.0, spread=0))
    assert list(agenda.known) == [2]
    assert agenda.names_by(b"1") == []
    assert agenda.names_of([agenda.known[2]]) == [b"1", b"2"]


def test_the_first_send_is_removed_after_the_repeated_one_was_cancelled() -> None:
    """It was being moved when the message was sent again."""
    agenda = Agenda()
    agenda.stored(Later(1, b"first", ("id", 0), due_at=10.0, spread=1))
    agenda.claimed(b"claim", [1], made_at=11.0)
    agenda.stored(Later(3, b"second", ("id", 0), due_at=30.0, spread=1))
    assert agenda.cancelled(b"cancel", [3], made_at=12.0) == [3]
    agenda.removed(b"first")
    assert agenda.known == {}
    assert agenda.stale(13.0) == [b"claim", b"second", b"cancel"]
