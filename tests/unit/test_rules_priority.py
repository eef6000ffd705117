"""Shares of priorities: in proportion, sooner for the urgent, and no level waits for ever."""

from __future__ import annotations

from collections import Counter, deque
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.priority import LEVELS, STEP, Lines, Shares, weight

_some = st.sets(st.integers(1, 10), min_size=1).map(lambda levels: sorted(levels, reverse=True))


@given(_some, st.integers(1, 2_000))
def test_each_level_has_its_share_at_any_time(levels: list[int], turns: int) -> None:
    shares = Shares()
    had = Counter(shares.pick(levels) for _ in range(turns))
    total = sum(map(weight, levels))
    for level in levels:
        fair = turns * weight(level) / total
        assert fair - len(levels) <= had[level] <= fair + len(levels)


@given(_some)
def test_none_waits_longer_than_its_share_says(levels: list[int]) -> None:
    shares = Shares()
    total = sum(map(weight, levels))
    turns = [shares.pick(levels) for _ in range(int(4 * total) + 1)]
    for level in levels:
        places = [-1, *(place for place, picked in enumerate(turns) if picked == level)]
        assert max(after - before for before, after in pairwise(places)) <= total / weight(level) + len(levels)


@given(st.lists(st.tuples(_some, st.integers(1, 30)), max_size=30), _some)
def test_who_was_away_has_saved_nothing(before: list[tuple[list[int], int]], levels: list[int]) -> None:
    """Whatever was there before, from now on the shares are fair."""
    shares = Shares()
    for others, turns in before:
        for _ in range(turns):
            shares.pick(others)
    had = Counter(shares.pick(levels) for _ in range(500))
    total = sum(map(weight, levels))
    for level in levels:
        assert abs(had[level] - 500 * weight(level) / total) <= 2 * len(levels) + 1


def test_an_urgent_one_that_arrives_is_next_but_for_a_few() -> None:
    shares = Shares()
    for _ in range(1_000):
        shares.pick((5, 1))
    assert 10 in [shares.pick((10, 5, 1)) for _ in range(2)]


@pytest.mark.parametrize(("level", "percent"), [(10, 33.9), (8, 15.1), (5, 4.5), (1, 0.9)])
def test_the_shares_that_the_guide_names(level: int, percent: float) -> None:
    assert round(100 * weight(level) / sum(map(weight, LEVELS)), 1) == percent
    had = Counter(Shares().plan(2_000))
    assert abs(had[level] / 20 - percent) < 0.3


def test_a_plan_begins_with_the_most_urgent() -> None:
    shares = Shares()
    plans = [shares.plan(30) for _ in range(10)]
    assert all(plan == sorted(plan, reverse=True) for plan in plans)
    assert any(1 in plan for plan in plans)


def test_weights_rise_by_the_step_and_stay_within_the_levels() -> None:
    assert [weight(level + 1) / weight(level) for level in range(1, 10)] == [STEP] * 9
    assert (weight(0), weight(-5), weight(11), weight(99)) == (weight(1), weight(1), weight(10), weight(10))


_moves = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "appendleft"]), st.integers(1, 10)),
        st.tuples(st.just("popleft"), st.just(0)),
    )
)


@given(_moves)
def test_lines_are_a_deque_a_level(moves: list[tuple[str, int]]) -> None:
    lines: Lines[tuple[int, int]] = Lines(lambda item: item[0])
    model: dict[int, deque[tuple[int, int]]] = {level: deque() for level in range(1, 11)}
    for number, (move, level) in enumerate(moves):
        item = (level, number)
        if move == "append":
            lines.append(item)
            model[level].append(item)
        elif move == "appendleft":
            lines.appendleft(item)
            model[level].appendleft(item)
        elif any(model.values()):
            popped = lines.popleft()
            assert model[popped[0]].popleft() == popped
        else:
            with pytest.raises(IndexError):
                lines.popleft()
        held = [item for level in LEVELS for item in model[level]]
        assert list(lines) == held
        assert len(lines) == len(held)
        assert bool(lines) is bool(held)


def test_with_one_level_lines_are_first_in_first_out() -> None:
    lines: Lines[int] = Lines(lambda _: 5)
    lines.extend([1, 2, 3])
    assert [lines.popleft() for _ in range(3)] == [1, 2, 3]


def test_of_two_levels_the_lower_one_has_its_turns() -> None:
    lines: Lines[int] = Lines(lambda level: level)
    lines.extend([10] * 90 + [9] * 60)
    first = [lines.popleft() for _ in range(50)]
    assert (first.count(10), first.count(9)) == (30, 20)


def test_what_was_cleared_is_gone() -> None:
    lines: Lines[int] = Lines(lambda level: level)
    lines.extend([1, 2, 2])
    lines.clear()
    assert (len(lines), bool(lines), list(lines)) == (0, False, [])
    lines.append(2)
    assert lines.popleft() == 2
