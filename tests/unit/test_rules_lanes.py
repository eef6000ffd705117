"""Lanes, against a plain list of records for each key."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hivewire.record import Fetched, Record
from hivewire.rules.lanes import Lane, Lanes

_KEYS = "abcd"


class LanesMachine(RuleBasedStateMachine):
    """One taker a key at a time, in the order added; nothing is left out but by losing its shard."""

    taken = Bundle("taken")
    blocked = Bundle("blocked")

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.model: dict[str, list[int]] = {}
        self.with_taker: set[str] = set()
        self.waiting: set[str] = set()
        self.resting: set[int] = set()
        self.count = 0

    @rule(keys=st.lists(st.sampled_from(_KEYS), min_size=1, max_size=6))
    def add(self, keys: list[str]) -> None:
        batch = []
        for key in keys:
            self.count += 1
            record = Record(str(self.count), key, b"")
            batch.append(Fetched(_KEYS.index(key) % 2, self.count, 1, record, 0.0))
            self.model.setdefault(key, []).append(self.count)
        self.lanes.add(batch)

    @rule(target=taken)
    def take(self) -> object:
        lane = self.lanes.next_lane()
        if lane is None:
            asleep = {key for key in self.model if _KEYS.index(key) % 2 in self.resting}
            assert set(self.model) <= self.with_taker | self.waiting | asleep
            return multiple()
        assert lane.shard not in self.resting
        assert lane.key not in self.with_taker | self.waiting
        assert [fetched.at for fetched in lane.waiting] == self.model[lane.key]
        self.with_taker.add(lane.key)
        return lane

    @rule(target=taken, lane=consumes(taken))
    def finish_first(self, lane: Lane) -> object:
        if lane.lost:
            return multiple()
        self.model[lane.key].pop(0)
        if self.lanes.finished(lane):
            return lane
        self.with_taker.discard(lane.key)
        del self.model[lane.key]
        return multiple()

    @rule(lane=consumes(taken))
    def put_back(self, lane: Lane) -> None:
        if not lane.lost:
            self.with_taker.discard(lane.key)
            self.lanes.resume(lane)

    @rule(target=blocked, lane=consumes(taken))
    def wait_for_a_retry(self, lane: Lane) -> object:
        if lane.lost:
            return multiple()
        self.with_taker.discard(lane.key)
        self.waiting.add(lane.key)
        self.lanes.block(lane)
        return lane

    @rule(lane=consumes(blocked))
    def the_time_has_come(self, lane: Lane) -> None:
        was_lost = lane.lost
        assert self.lanes.unblock(lane) != was_lost
        if not was_lost:
            self.waiting.discard(lane.key)

    @rule(shard=st.integers(0, 1))
    def rest(self, shard: int) -> None:
        self.resting.add(shard)
        self.lanes.rest({shard})

    @rule(shard=st.integers(0, 1))
    def go_on(self, shard: int) -> None:
        self.resting.discard(shard)
        self.lanes.go_on({shard})

    @rule(lane=consumes(taken))
    def put_first(self, lane: Lane) -> None:
        if not lane.lost:
            self.with_taker.discard(lane.key)
            self.lanes.put_first(lane)

    @rule()
    def take_all_back(self) -> None:
        mine = {key for key in self.model if key not in self.with_taker | self.waiting}
        self.resting.clear()
        assert {lane.key for lane in self.lanes.take_back()} == mine
        for key in mine:
            del self.model[key]

    @rule(shard=st.integers(0, 1))
    def lose(self, shard: int) -> None:
        gone = {key for key in self.model if _KEYS.index(key) % 2 == shard}
        assert {lane.key for lane in self.lanes.lose({shard})} == gone
        for key in gone:
            del self.model[key]
        self.with_taker -= gone
        self.waiting -= gone
        self.resting.discard(shard)

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.lanes) == len(self.model)
        assert self.lanes.held == sum(map(len, self.model.values()))
        assert self.lanes.active == sum(len(ids) for key, ids in self.model.items() if key not in self.waiting)
        for key, lane in self.lanes._lanes.items():
            assert lane.halted == (_KEYS.index(key) % 2 in self.resting)
        assert self.lanes.busy() == {_KEYS.index(key) % 2 for key in self.with_taker}


LanesMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLanes = LanesMachine.TestCase


def _fetched(at: int, key: str = "a") -> Fetched:
    return Fetched(0, at, 1, Record(str(at), key, b""), 0.0)


def test_a_detached_lane_keeps_what_runs_and_its_key_is_free() -> None:
    lanes = Lanes()
    lanes.add([_fetched(1), _fetched(2)])
    running = lanes.next_lane()
    assert running is not None
    lanes.end({0})
    lanes.detach(running)
    assert [fetched.at for fetched in running.waiting] == [1]
    assert not running.may_go_on
    assert lanes.lose({0}) == []
    assert not running.lost
    lanes.add([_fetched(2)])  # the shard came back
    again = lanes.next_lane()
    assert again is not None
    assert again is not running
    assert not lanes.finished(running)
    assert len(lanes) == 1


def test_a_closed_lane_keeps_its_key_back_until_it_is_opened() -> None:
    lanes = Lanes()
    closed = lanes.add_closed(_fetched(1))
    lanes.add([_fetched(2), _fetched(3, "b")])
    ready = lanes.next_lane()
    assert ready is not None
    assert ready.key == "b"
    assert closed.blocked
    assert lanes.next_lane() is None
    assert lanes.unblock(closed)
    assert lanes.next_lane() is closed
    assert [fetched.at for fetched in closed.waiting] == [1, 2]


def test_two_of_a_key_that_are_elsewhere_share_a_lane_in_their_order() -> None:
    lanes = Lanes()
    closed = lanes.add_closed(_fetched(1))
    assert lanes.add_closed(_fetched(2)) is closed
    assert [fetched.at for fetched in closed.waiting] == [1, 2]
    assert lanes.next_lane() is None
