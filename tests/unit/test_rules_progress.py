"""A shard's progress in few bytes: what comes back is what was put in, or less of it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.progress import History, Progress, decode, encode

_small = st.integers(0, 300)


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    low = draw(st.integers(0, 2**40))
    places = draw(st.lists(st.integers(0, 2_000), unique=True, max_size=200))
    finished = draw(st.sets(st.sampled_from(places), max_size=len(places))) if places else set()
    history = [
        History(low + place, draw(_small), draw(_small), draw(_small), draw(st.booleans()))
        for place in sorted(set(places) - finished)
    ]
    return Progress(low, sorted(low + place for place in finished), history, low + draw(st.integers(0, 3_000)))


@given(progresses())
def test_it_comes_back_as_it_was(progress: Progress) -> None:
    assert decode(encode(progress)) == progress


@given(progresses(), st.integers(30, 600))
def test_within_a_limit_only_the_last_ones_are_left_out(progress: Progress, most_bytes: int) -> None:
    packed = encode(progress, most_bytes)
    assert len(packed) <= most_bytes
    found = decode(packed)
    assert (found.watermark, found.taken_to) == (progress.watermark, progress.taken_to)
    assert found.ahead == progress.ahead[: len(found.ahead)]
    assert found.history == progress.history[: len(found.history)]


def test_ten_thousand_finished_behind_one_cost_a_few_bytes() -> None:
    packed = encode(Progress(5, range(6, 10_006), [History(5, 1, running=True)], 10_006))
    assert len(packed) < 16
    assert decode(packed).running == 1


def test_a_thousand_that_run_fit_into_a_commit() -> None:
    history = [History(1_000_000 + 3 * n, starts=1, running=True) for n in range(1_000)]
    assert len(encode(Progress(1_000_000, [], history, 1_003_000))) < 2_100


def test_nothing_saved_is_the_start_of_a_shard() -> None:
    assert decode(b"") == Progress()


@given(progresses())
def test_half_of_it_is_refused_or_read_without_an_error_of_another_kind(progress: Progress) -> None:
    packed = encode(progress)
    with suppress(ValueError):
        decode(packed[: len(packed) // 2])


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 9"):
        decode(b"\x09\x00")
