"""Lanes, step by step: what a taker, a retry, a parked record and a shard that moves find."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from hivewire.record import Fetched, Record
from hivewire.rules.lanes import LONG_LANE, Lane, Lanes


def record(number: int, key: str = "a", shard: int = 0, priority: int = 5, dedup_key: str | None = None) -> Fetched:
    body = Record(f"m{number}", key, b"", priority=priority, dedup_key=dedup_key)
    return Fetched(shard, number, 1, body, 0.0)


def holding(*batch: Fetched, competing: bool = False, by_priority: bool = False) -> Lanes:
    lanes = Lanes(competing=competing, by_priority=by_priority)
    lanes.add(batch)
    return lanes


def take(lanes: Lanes) -> Lane:
    lane = lanes.next_lane()
    assert lane is not None
    return lane


def may_go_on(lane: Lane) -> bool:
    return lane.may_go_on


def is_taken(lane: Lane) -> bool:
    return lane.taken


def is_halted(lane: Lane) -> bool:
    return lane.halted


def places(lane: Lane) -> list[int | str]:
    return [fetched.at for fetched in lane.waiting]


def all_places(lanes: Lanes) -> list[list[int | str]]:
    """Of each lane, in the order in which they are taken."""
    found = []
    while (lane := lanes.next_lane()) is not None:
        found.append(places(lane))
    return found


def test_a_new_lane_is_whole_and_nobody_has_it() -> None:
    lane = Lane("a", 3)
    assert (lane.key, lane.shard, lane.grip) == ("a", 3, 0)
    assert (lane.taken, lane.blocked, lane.ending, lane.halted, lane.lost, lane.away) == (False,) * 6
    assert lane != Lane("a", 3)  # one with the same in it is another


def test_records_of_a_key_are_one_lane_whatever_comes_between() -> None:
    lanes = holding(record(1), record(2, "b"), record(3), record(4, "b"), record(5, "b"))
    assert len(lanes) == 2
    assert all_places(lanes) == [[1, 3], [2, 4, 5]]


def test_competing_records_are_lanes_of_their_own_but_for_one_idempotency_key() -> None:
    batch = [record(1), record(2), record(3, dedup_key="k"), record(4, "b", dedup_key="k")]
    assert all_places(holding(*batch, competing=True)) == [[1], [2], [3, 4]]
    assert all_places(holding(*batch)) == [[1, 2, 3], [4]]


def test_by_priority_the_urgent_lane_goes_first_and_else_the_first() -> None:
    batch = [record(1, "a", priority=1), record(2, "b", priority=9)]
    assert all_places(holding(*batch, by_priority=True)) == [[2], [1]]
    assert all_places(holding(*batch)) == [[1], [2]]


def test_the_priority_of_a_lane_is_that_of_its_first_record() -> None:
    lanes = holding(
        record(1, "a", priority=2), record(2, "a", priority=10), record(3, "b", priority=6), by_priority=True
    )
    assert take(lanes).key == "b"


def test_each_change_of_hands_changes_the_grip() -> None:
    lanes = holding(record(1), record(2), record(3))
    lane = take(lanes)
    grips = [lane.grip]
    moves: list[Callable[[Lane], object]] = [lanes.resume, lanes.put_first, lanes.block]
    for give in moves:
        give(lane)
        assert not is_taken(lane)
        grips.append(lane.grip)
        if lane.blocked:
            assert lanes.unblock(lane) is True
        assert take(lanes) is lane
        assert is_taken(lane)
        grips.append(lane.grip)
    lanes.remove(lane)
    grips.append(lane.grip)
    assert grips == list(range(1, len(grips) + 1))
    assert not is_taken(lane)
    assert len(lanes) == 0


def test_who_has_finished_the_last_record_has_the_lane_no_more() -> None:
    lanes = holding(record(1), record(2))
    lane = take(lanes)
    assert lanes.finished(lane) is True
    assert len(lanes) == 1
    assert lanes.finished(lane) is False
    assert len(lanes) == 0
    assert not is_taken(lane)


@pytest.mark.parametrize("state", ["lost", "blocked", "halted"])
def test_a_taker_may_go_on_only_with_a_lane_that_nothing_holds_up(state: str) -> None:
    lane = Lane("a", 0)
    assert may_go_on(lane) is False
    lane.waiting.append(record(1))
    assert may_go_on(lane) is True
    setattr(lane, state, True)
    assert may_go_on(lane) is False


def test_behind_a_long_blocked_lane_only_positions_are_kept() -> None:
    lanes = holding(*(record(number) for number in range(LONG_LANE - 1)))
    lane = take(lanes)
    lanes.block(lane)
    lanes.add([record(100), record(101), record(102)])
    assert len(lane.waiting) == LONG_LANE == 64
    assert places(lane)[-1] == 100
    assert list(lane.parked) == [101, 102]
    assert lanes.unblock(lane)
    lanes.add([record(103)])  # behind what is parked, or it would overtake
    assert list(lane.parked) == [101, 102, 103]


def test_a_long_lane_that_is_not_blocked_keeps_all() -> None:
    lanes = holding(*(record(number) for number in range(LONG_LANE + 5)))
    assert len(take(lanes).waiting) == LONG_LANE + 5
    lanes = holding(record(1))
    lane = take(lanes)
    lanes.block(lane)
    lanes.add([record(2)])
    assert places(lane) == [1, 2]
    assert not lane.parked


def test_a_lane_with_parked_records_stays_when_the_others_are_finished() -> None:
    lanes = holding(record(1))
    lane = take(lanes)
    lane.parked = deque([2])
    assert lanes.finished(lane) is False
    assert len(lanes) == 1


def test_put_back_it_goes_behind_the_others_and_put_first_before_them() -> None:
    lanes = holding(record(1, "a"), record(2, "b"))
    first = take(lanes)
    lanes.resume(first)
    assert take(lanes).key == "b"
    lanes.put_first(first)
    lanes.add([record(3, "c")])
    assert take(lanes) is first


def test_the_retry_of_a_lane_that_was_removed_comes_to_nothing() -> None:
    lanes = holding(record(1))
    lane = take(lanes)
    lanes.block(lane)
    lanes.remove(lane)
    assert lanes.unblock(lane) is False
    lanes.add([record(2)])
    assert lanes.unblock(lane) is False  # another lane has its key
    assert all_places(lanes) == [[2]]


def test_the_retry_of_a_lost_lane_comes_to_nothing() -> None:
    lanes = holding(record(1))
    lane = take(lanes)
    lanes.block(lane)
    assert lanes.lose({0}) == [lane]
    assert lane.lost
    assert lanes.unblock(lane) is False
    lanes.add([record(2)])
    lanes.remove(lane)  # what became of the old lane does not touch the new one
    assert all_places(lanes) == [[2]]


def test_a_lost_lane_that_is_put_back_is_not_handed_out() -> None:
    lanes = holding(record(1))
    lane = take(lanes)
    lanes.lose({0})
    lanes.resume(lane)
    assert not lanes.ready
    assert lanes.next_lane() is None


def test_lanes_are_ordered_and_first_come_unless_it_is_said_otherwise() -> None:
    lanes = Lanes()
    lanes.add([record(1, "a", priority=1), record(2, "b", priority=9), record(3, "a")])
    assert all_places(lanes) == [[1, 3], [2]]


def test_a_lost_lane_that_waits_is_passed_over() -> None:
    lanes = holding(record(1, "a"), record(2, "b", shard=1))
    lanes.lose({0})
    assert take(lanes).key == "b"
    assert lanes.next_lane() is None


def test_shards_that_end_keep_the_lanes_that_are_taken_until_these_are_put_back() -> None:
    lanes = holding(record(1, "a"), record(2, "b"), record(3, "c", shard=1))
    taken = take(lanes)
    assert lanes.busy() == {0}
    assert lanes.end({0}) == [taken]
    assert (taken.ending, taken.halted, taken.lost) == (True, True, False)
    assert not taken.may_go_on
    assert len(lanes) == 2
    lanes.go_on({0})
    assert taken.halted  # it ends, whatever rests or not
    lanes.resume(taken)
    assert len(lanes) == 1
    assert all_places(lanes) == [[3]]


def test_an_ending_lane_whose_record_waits_for_a_retry_is_gone() -> None:
    lanes = holding(record(1), record(2, "b", shard=1))
    taken = take(lanes)
    lanes.end({0})
    lanes.block(taken)
    assert len(lanes) == 1
    assert lanes.unblock(taken) is False


def test_an_ending_lane_that_nobody_has_is_lost() -> None:
    lanes = holding(record(1))
    lane = take(lanes)
    lanes.resume(lane)
    assert lanes.end({0}) == []
    assert lane.lost
    assert len(lanes) == 0
    assert lanes.next_lane() is None


def test_a_resting_shard_hands_out_nothing_and_keeps_its_order() -> None:
    lanes = holding(record(1, "a"), record(2, "b"), record(3, "c", shard=1))
    first = take(lanes)
    lanes.rest({0})
    assert is_halted(first)
    lanes.add([record(4, "d"), record(5, "e", shard=1)])
    lanes.resume(first)
    assert all_places(lanes) == [[3], [5]]
    lanes.go_on({0})
    assert not is_halted(first)
    assert all_places(lanes) == [[2], [4], [1]]
    assert lanes.busy() == {0, 1}


def test_put_first_into_a_resting_shard_it_rests() -> None:
    lanes = holding(record(1, "a"), record(2, "b", shard=1))
    first = take(lanes)
    lanes.rest({0})
    lanes.put_first(first)
    assert all_places(lanes) == [[2]]
    lanes.go_on({0})
    assert all_places(lanes) == [[1]]


def test_one_of_two_resting_shards_goes_on_alone() -> None:
    lanes = holding(record(1, "a"), record(2, "b", shard=1))
    lanes.rest({0})
    lanes.rest({1})
    lanes.go_on({1})
    assert all_places(lanes) == [[2]]
    lanes.add([record(3, "c")])
    assert lanes.next_lane() is None
    lanes.go_on({0})
    assert all_places(lanes) == [[1], [3]]


@pytest.mark.parametrize("how", ["end", "lose"])
def test_a_shard_that_comes_back_does_not_rest_any_more(how: str) -> None:
    lanes = holding(record(1, "a"), record(2, "b", shard=1))
    lanes.rest({0, 1})
    (lanes.end if how == "end" else lanes.lose)({0})
    lanes.add([record(1, "a")])
    assert all_places(lanes) == [[1]]
    lanes.go_on({0, 1})
    assert all_places(lanes) == [[2]]  # what rested of the lost shard is not handed out again


def test_giving_back_leaves_what_is_taken_or_blocked_and_may_leave_one_shard() -> None:
    lanes = holding(*(record(number, key, number % 2) for number, key in enumerate("abcdef")))
    taken, blocked = take(lanes), take(lanes)
    lanes.block(blocked)
    lanes.rest({0})
    back = lanes.take_back(keep_shard=1)
    assert sorted(lane.key for lane in back) == ["c", "e"]
    assert not any(lane.taken for lane in back)
    assert taken.key == "a"
    assert all_places(lanes) == [[3], [5]]
    assert len(lanes) == 4
    assert lanes.take_back() == []


def test_a_detached_lane_forgets_what_was_parked() -> None:
    lanes = Lanes()
    lane = lanes.add_closed(record(0))
    lanes.add([record(number) for number in range(1, LONG_LANE + 2)])
    assert list(lane.parked) == [LONG_LANE, LONG_LANE + 1]
    lanes.detach(lane)
    assert (places(lane), list(lane.parked)) == ([0], [])


def test_priorities_count_again_after_all_was_taken() -> None:
    lanes = holding(record(0, "a"), by_priority=True)
    assert all_places(lanes) == [[0]]
    lanes.add([record(1, "b", priority=1), record(2, "c", priority=9)])
    assert all_places(lanes) == [[2], [1]]


def _nothing(lanes: Lanes) -> None:
    return


def _waiting(lanes: Lanes) -> None:
    lanes.add([record(0)])


def _taken(lanes: Lanes) -> None:
    lanes.add([record(0)])
    take(lanes)


def _blocked(lanes: Lanes) -> None:
    lanes.add([record(0)])
    lanes.block(take(lanes))


def _parked(lanes: Lanes) -> None:
    lane = lanes.add_closed(record(0))
    lane.parked = deque([1])
    lanes.unblock(lane)


def _resting(lanes: Lanes) -> None:
    lanes.rest({3})


@pytest.mark.parametrize("before", [_nothing, _waiting, _taken, _blocked, _parked, _resting])
@pytest.mark.parametrize("number", [2, LONG_LANE + 2])
def test_a_run_of_one_key_is_put_where_each_would_be(before: Callable[[Lanes], None], number: int) -> None:
    run = [record(100 + place, shard=3) for place in range(number)]
    at_once, one_by_one = Lanes(), Lanes()
    for lanes in (at_once, one_by_one):
        before(lanes)
    at_once.add(run)
    for fetched in run:
        one_by_one.add([fetched])
    assert (len(at_once), at_once.held, at_once.active) == (len(one_by_one), one_by_one.held, one_by_one.active)
    ours, theirs = at_once.next_lane(), one_by_one.next_lane()
    assert (ours is None) is (theirs is None)
    if ours is not None and theirs is not None:
        assert (ours.shard, places(ours), list(ours.parked)) == (theirs.shard, places(theirs), list(theirs.parked))
    for lanes in (at_once, one_by_one):
        lanes.go_on({3})
    assert all_places(at_once) == all_places(one_by_one)
    ends = [[(places(lane), list(lane.parked)) for lane in lanes.end({0, 3})] for lanes in (at_once, one_by_one)]
    assert ends[0] == ends[1]


def test_in_competing_mode_a_run_of_one_key_is_many_lanes() -> None:
    lanes = holding(record(1), record(2), competing=True)
    assert all_places(lanes) == [[1], [2]]


def test_a_blocked_lane_keeps_only_positions_of_a_long_run_among_others() -> None:
    lanes = holding(record(0))
    lane = take(lanes)
    lanes.block(lane)
    lanes.add([*(record(number) for number in range(1, LONG_LANE + 2)), record(999, "b")])
    assert (places(lane), list(lane.parked)) == (list(range(LONG_LANE)), [LONG_LANE, LONG_LANE + 1])
    assert all_places(lanes) == [[999]]
