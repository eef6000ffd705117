"""The estimate of a store's clock."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.store_clock import StoreClock

ways = st.tuples(st.floats(0, 5), st.floats(0, 5))
"""How long a question and its answer were on their way."""
AHEAD = st.floats(-1e4, 1e4)
FINE = 1e-6
"""Seconds since the epoch are floats: so finely they are known."""


def ask(clock: StoreClock, here: float, way: tuple[float, float], ahead: float) -> None:
    there, back = way
    clock.told(asked_at=here, store_now=here + there + ahead, answered_at=here + there + back)


@given(AHEAD, st.lists(ways, min_size=1))
def test_it_is_never_further_off_than_the_best_answer_allows(ahead: float, answers: list[tuple[float, float]]) -> None:
    clock = StoreClock()
    for number, way in enumerate(answers):
        ask(clock, 1.7e9 + 20 * number, way, ahead)
    error = abs(clock.at(0.0) - ahead)
    assert error <= min(there + back for there, back in answers) + FINE


@given(AHEAD, st.lists(ways, min_size=2))
def test_answers_never_make_it_worse_while_the_clocks_run_alike(
    ahead: float, answers: list[tuple[float, float]]
) -> None:
    clock = StoreClock()
    errors = []
    for number, way in enumerate(answers):
        ask(clock, 1.7e9 + 20 * number, way, ahead)
        errors.append(abs(clock.at(0.0) - ahead))
    assert all(later <= earlier + FINE for earlier, later in itertools.pairwise(errors))


@given(st.lists(ways))
def test_the_clock_of_this_machine_is_taken_as_it_is(answers: list[tuple[float, float]]) -> None:
    clock = StoreClock()
    for number, way in enumerate(answers):
        ask(clock, 1.7e9 + 20 * number, way, 0.0)
    assert abs(clock.at(0.0)) <= FINE


@given(AHEAD, AHEAD, ways, ways)
def test_a_clock_that_was_set_is_followed_with_the_next_answer(
    before: float, after: float, first: tuple[float, float], second: tuple[float, float]
) -> None:
    clock = StoreClock()
    ask(clock, 1.7e9, first, before)
    ask(clock, 1.7e9 + 20, second, after)
    assert abs(clock.at(0.0) - after) <= sum(second) + FINE


@given(AHEAD, ways)
def test_what_the_store_has_stamped_is_not_in_the_future(ahead: float, way: tuple[float, float]) -> None:
    clock, here = StoreClock(), 1.7e9
    ask(clock, here, way, ahead)
    clock.not_before(here + ahead, here)
    assert clock.at(here) >= here + ahead - FINE
    assert clock.at(here) - (here + ahead) <= sum(way) + FINE
