"""How long to wait before what fails is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.backoff import Backoff


@given(st.floats(0.01, 1), st.floats(1, 60), st.lists(st.booleans(), max_size=30))
def test_waits_double_up_to_the_longest_and_begin_anew(first_s: float, most_s: float, works: list[bool]) -> None:
    backoff = Backoff(first_s, most_s)
    failures = 0
    for has_worked in works:
        if has_worked:
            backoff.is_over()
            failures = 0
        else:
            assert backoff.next_s() == min(first_s * 2**failures, most_s)
            failures += 1
