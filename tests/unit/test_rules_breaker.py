"""The circuit breaker against a slow, obvious model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.breaker import Breaker

EVENTS = st.lists(st.tuples(st.sampled_from(["ask", "succeed", "fail", "leave"]), st.integers(0, 40)), max_size=60)


@given(EVENTS, st.integers(1, 4), st.integers(1, 60))
def test_it_lets_through_what_the_rule_says(events: list[tuple[str, int]], most: int, rest_s: int) -> None:
    breaker = Breaker(failures=most, rest_s=rest_s)
    now = 0
    in_a_row: list[int] = []  # times of the failures since the last success
    probing = False
    running = False
    for kind, pause in events:
        now += pause
        is_open = len(in_a_row) >= most
        if kind == "ask":
            may = not is_open or (not probing and now >= in_a_row[-1] + rest_s)
            assert breaker.begin(now) is may
            running = running or may
            probing = probing or (may and is_open)
        elif running:
            running = probing = False
            if kind == "succeed":
                breaker.succeeded()
                in_a_row.clear()
            elif kind == "fail":
                breaker.failed(now)
                in_a_row.append(now)
            else:
                breaker.left()


def test_one_call_is_let_through_after_the_rest() -> None:
    breaker = Breaker(failures=1, rest_s=10)
    assert breaker.begin(0)
    breaker.failed(0)
    assert (breaker.begin(9), breaker.wait_s(9)) == (False, 1.0)
    assert (breaker.begin(10), breaker.begin(10)) == (True, False)
    breaker.left()  # cancelled: the next one finds out
    assert breaker.begin(10)
    breaker.succeeded()
    assert breaker.wait_s(10) == 0


def test_a_success_begins_the_count_anew() -> None:
    breaker = Breaker(failures=2, rest_s=10)
    breaker.failed(0)
    breaker.succeeded()
    breaker.failed(1)
    assert breaker.begin(1)
    breaker.failed(1)
    assert not breaker.begin(1)
    assert breaker.begin(11)  # the one that finds out
    breaker.succeeded()
    assert (breaker.begin(11), breaker.begin(11)) == (True, True)
    breaker.failed(12)
    breaker.failed(12)
    assert breaker.wait_s(13) == 9
    assert breaker.begin(22)
    assert breaker.wait_s(30) == 10  # for as long as it takes to find out


def test_it_opens_after_five_failures_for_a_minute() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0)
    assert breaker.wait_s(0) == 0.0
    breaker.failed(0)
    assert breaker.wait_s(0) == 60.0


def test_without_a_rest_the_next_call_finds_out_at_once() -> None:
    for rest_s in (0, 0.5):
        breaker = Breaker(failures=1, rest_s=rest_s)
        breaker.failed(0)
        assert breaker.begin(rest_s)
        assert breaker.begin(rest_s) is (rest_s == 0)


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"rest_s": -1}])
def test_it_refuses_what_is_no_breaker(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not a circuit breaker"):
        Breaker(**wrong)
