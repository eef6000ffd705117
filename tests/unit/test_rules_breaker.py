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


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"rest_s": -1}])
def test_it_refuses_what_is_no_breaker(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not a circuit breaker"):
        Breaker(**wrong)
