"""Whose fault a crash was, how much to take ahead, when to try again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.errors import SettingsError
from hivewire.record import Fetched, Record
from hivewire.rules.blame import MOST_INTERNAL_CRASHES, is_killer, judge, runs_alone
from hivewire.rules.pace import Pace
from hivewire.rules.retry import Retry


def record() -> Fetched:
    return Fetched(0, 1, 1, Record("id", "key", b""), 0.0)


@given(deaths=st.lists(st.integers(0, 6), max_size=8))
def test_only_a_death_while_alone_is_its_own_failure(deaths: list[int]) -> None:
    fetched = record()
    for running in deaths:
        fetched.died = running
        judge(fetched)
        assert fetched.died == 0  # judged once
    assert fetched.failures == sum(running == 1 for running in deaths)
    assert fetched.crashes == sum(running > 1 for running in deaths)
    assert runs_alone(fetched) == (fetched.crashes >= 2)


@given(deaths=st.lists(st.integers(0, 6), max_size=60), max_attempts=st.integers(1, 40))
def test_internal_work_fails_by_no_death_and_ends_after_very_many(deaths: list[int], max_attempts: int) -> None:
    fetched = record()
    for running in deaths:
        fetched.died = running
        judge(fetched, is_internal=True)
        assert fetched.died == 0
    count = sum(running > 0 for running in deaths)
    assert (fetched.failures, fetched.crashes) == (0, count)
    assert is_killer(fetched, max_attempts, is_internal=True) == (count >= max(max_attempts, MOST_INTERNAL_CRASHES))
    assert not runs_alone(fetched, is_internal=True)


@given(failures=st.integers(0, 10), max_attempts=st.integers(1, 10))
def test_a_handler_s_deaths_count_as_its_attempts(failures: int, max_attempts: int) -> None:
    fetched = record()
    fetched.failures, fetched.crashes = failures, 100
    assert is_killer(fetched, max_attempts) == (failures >= max_attempts)


@given(
    seen=st.lists(st.tuples(st.integers(1, 1_000), st.floats(1e-6, 3_600)), max_size=10),
    slots=st.integers(1, 64),
    busy=st.integers(0, 64),
)
def test_never_less_than_the_free_slots_and_never_without_a_bound(
    seen: list[tuple[int, float]], slots: int, busy: int
) -> None:
    pace, free = Pace(), max(0, slots - busy)
    for handled, seconds in seen:
        pace.observe(handled, seconds)
    assert free <= pace.lanes(slots, free) <= max(1_000, free)


@given(
    each=st.floats(1e-5, 0.01),
    handled=st.integers(2, 100),
    slots=st.integers(1, 64),
    free=st.integers(0, 64),
    then=st.floats(1e-5, 0.01),
)
def test_ahead_is_what_the_slots_handle_in_50_ms(each: float, handled: int, slots: int, free: int, then: float) -> None:
    pace = Pace()
    pace.observe(handled, each * handled)
    mean = each
    for _ in range(4):  # a moving mean: the new one counts for a fifth
        assert abs(pace.lanes(slots, free) - min(free + slots * 0.05 / mean, 1_000)) <= 1
        pace.observe(handled, then * handled)
        mean += (then - mean) / 5


def test_endless_speed_has_a_bound_and_free_slots_have_none() -> None:
    pace = Pace()
    pace.observe(1_000_000, 0.0)
    assert pace.lanes(8, 8) == 1_000
    assert pace.lanes(4_000, 4_000) == 4_000


def test_slow_handlers_take_nothing_ahead() -> None:
    pace = Pace()
    pace.observe(handled=1, seconds=60.0)
    assert pace.lanes(slots=8, free=0) == 0


@given(failures=st.integers(1, 5_000), chance=st.floats(0, 1, exclude_max=True), first=st.floats(0, 10))
def test_the_wait_grows_to_its_bound(failures: int, chance: float, first: float) -> None:
    retry = Retry(first_s=first, most_s=60)
    assert 0 <= retry.delay_s(failures, chance) <= retry.ceiling_s(failures) <= 60
    assert retry.ceiling_s(failures) <= retry.ceiling_s(failures + 1)


@given(failures=st.integers(1, 60), first=st.floats(0.001, 10), factor=st.floats(1, 4), most=st.floats(0, 1e9))
def test_each_failure_multiplies_the_wait(failures: int, first: float, factor: float, most: float) -> None:
    retry = Retry(first_s=first, most_s=most, factor=factor)
    expected = first
    for _ in range(failures - 1):
        expected *= factor
    assert retry.ceiling_s(failures) == pytest.approx(min(most, expected))


def test_after_very_many_failures_the_wait_is_the_longest() -> None:
    retry = Retry(first_s=1e-30, most_s=1e6)
    assert retry.ceiling_s(60) < retry.ceiling_s(61) == retry.ceiling_s(5_000) == 1e6
    assert Retry(most_s=8.0).delay_s(10, 0.25) == 2.0


@pytest.mark.parametrize("most_s", [float("inf"), 1e300])
def test_a_wait_may_grow_without_a_bound(most_s: float) -> None:
    retry = Retry(most_s=most_s)
    assert [retry.ceiling_s(failures) for failures in (1, 2, 30)] == [1.0, 2.0, 2.0**29]
    assert [retry.ceiling_s(failures) for failures in (59, 5_000)] == [1e10, 1e10]  # what a store can count
    assert retry.delay_s(5_000, 0.0) == 0.0


def test_the_policy_that_is_used_when_none_is_given() -> None:
    retry = Retry()
    assert retry.max_attempts == 5
    assert [retry.ceiling_s(failures) for failures in (1, 2, 3, 7)] == [1.0, 2.0, 4.0, 60.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", 2.5),
        ("max_attempts", True),
        ("first_s", -0.1),
        ("first_s", float("nan")),
        ("first_s", "1s"),
        ("most_s", -0.1),
        ("most_s", float("-inf")),
        ("first_s", float("inf")),
        ("factor", float("inf")),
        ("most_s", None),
        ("factor", 0.9),
    ],
)
def test_it_refuses_what_is_no_policy(name: str, value: Any) -> None:
    Retry(max_attempts=1, first_s=0, most_s=0, factor=1)
    Retry(first_s=0.5, most_s=0.5)
    with pytest.raises(SettingsError, match=f"not a retry policy: {name} is a .*number.*; got {value!r}$"):
        Retry(**{name: value})


def test_nothing_is_known_before_the_first_handler_has_ended() -> None:
    assert Pace().lanes(slots=8, free=3) == 3
