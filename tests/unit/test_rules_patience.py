"""A busy shard rests for a bounded time, and never for more than a fifth of it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.patience import Patience

STEP_S = 0.25


@given(st.lists(st.sampled_from(["wish", "moved", "more"]), max_size=400))
def test_a_shard_that_never_ends_rests_for_a_fifth_of_the_time_at_most(wishes: list[str]) -> None:
    """Against the times written down: (from, to) of each rest that came to nothing."""
    patience = Patience()
    resting_since: float | None = None
    rests: list[tuple[float, float]] = []
    length, free_at = 2.0, 0.0
    for tick, wish in enumerate(wishes * 3):
        now = 100.0 + tick * STEP_S
        if resting_since is None:
            may = patience.may_begin(now)
            assert may is (now >= free_at)
            if may:
                resting_since = now
        elif wish == "more":
            assert patience.may_begin(now, goes_on=True) is True
        elif wish == "moved":
            patience.moved(goes_on=False)
            resting_since, length, free_at = None, 2.0, 0.0
        elif now >= resting_since + length:
            assert patience.is_over(now) is True
            rests.append((resting_since, now))
            resting_since, free_at = None, now + 4 * length
            length = min(2 * length, 32.0)
        else:
            assert patience.is_over(now) is False
    for (_, ended), (began_again, ended_again) in pairwise(rests):
        assert ended_again > began_again >= ended


def test_its_lengths() -> None:
    patience, now, lengths = Patience(), 0.0, []
    for _ in range(7):
        assert patience.may_begin(now)
        length = patience.left_s(now)
        lengths.append(length)
        assert patience.is_over(now + length / 2) is False
        assert patience.is_over(now + length) is True
        now += length
        assert patience.left_s(now) == 4 * length
        assert patience.may_begin(now + 4 * length - 0.01) is False
        now += 4 * length
    assert lengths == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]


def test_nothing_is_over_before_it_began() -> None:
    patience = Patience()
    assert patience.is_over(5.0) is False
    assert patience.left_s(5.0) == 2.0
    assert patience.may_begin(5.0, goes_on=True) is True  # the time of the others runs, not a new one
    assert patience.left_s(5.0) == 2.0
    assert patience.is_over(100.0) is False


def test_who_moved_has_the_first_patience_again() -> None:
    patience = Patience()
    assert patience.may_begin(0.0)
    assert patience.is_over(2.0)
    assert patience.may_begin(10.0)
    patience.moved(goes_on=True)  # others still rest: their time runs on
    assert patience.left_s(11.0) == 3.0
    assert patience.left_s(20.0) == 0.01
    assert patience.is_over(14.0)
    assert patience.left_s(14.0) == 8.0
    patience.moved(goes_on=False)
    assert patience.may_begin(14.0)
    assert patience.left_s(14.0) == 2.0
