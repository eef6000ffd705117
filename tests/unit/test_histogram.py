"""Percentiles against a sorted list of all values."""

import math

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.histogram import ERROR, Histogram, summary_ms

VALUES = st.lists(st.integers(0, 2**50) | st.integers(0, 1000), min_size=1, max_size=200)
PERCENTS = st.sampled_from([0, 1, 25, 50, 75, 90, 95, 99, 99.9, 100])


def _counted(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def _true_percentile(values: list[int], percent: float) -> int:
    rank = max(math.ceil(len(values) * percent / 100 - 1e-9), 1)
    return sorted(values)[rank - 1]


@given(VALUES, PERCENTS)
def test_a_percentile_is_never_too_low_and_at_most_the_stated_error_too_high(values: list[int], percent: float) -> None:
    found = _counted(values).percentile(percent)
    true = _true_percentile(values, percent)
    assert true <= found <= true * (1 + ERROR)


@given(st.lists(st.integers(0, 255), min_size=1), PERCENTS)
def test_small_numbers_are_exact(values: list[int], percent: float) -> None:
    assert _counted(values).percentile(percent) == _true_percentile(values, percent)


@given(VALUES, VALUES, PERCENTS)
def test_merging_equals_counting_all_in_one(left: list[int], right: list[int], percent: float) -> None:
    merged = _counted(left)
    merged.merge(_counted(right))
    both = _counted(left + right)
    assert merged.percentile(percent) == both.percentile(percent)
    assert (merged.count, merged.most) == (both.count, both.most)


@given(VALUES)
def test_the_steps_rise_to_the_whole(values: list[int]) -> None:
    steps = list(_counted(values).steps())
    assert steps == sorted(set(steps))
    assert steps[-1] == (max(values), len(values))


def test_without_values_all_is_zero() -> None:
    assert summary_ms(Histogram()) == {"p50": 0, "p95": 0, "p99": 0, "p99.9": 0, "max": 0}


def test_a_summary_is_in_milliseconds() -> None:
    assert summary_ms(_counted([2500])) == {"p50": 2.5, "p95": 2.5, "p99": 2.5, "p99.9": 2.5, "max": 2.5}


def test_a_negative_value_counts_as_zero() -> None:
    assert _counted([-5]).percentile(50) == 0


def test_a_power_of_two_has_128_buckets() -> None:
    histogram = Histogram()
    for value in range(512, 1024):
        histogram.add(value)
    assert len(list(histogram.steps())) == 128
    assert ERROR == 1 / 128
