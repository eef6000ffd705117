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


WHOLE = Progress(
    300,
    [300, 301, 302, 310, 500],
    [History(303, 1, running=True), History(304, 2, 1, 1), History(400, 3, 200)],
    600,
)


def test_the_stored_form_does_not_change() -> None:
    """Another release reads it: whoever changes it raises the version."""
    assert encode(WHOLE).hex() == "02ac02ac020700030701bd0101030901160101601ac801"
    assert decode(encode(WHOLE)) == WHOLE
    assert encode(Progress()) == b"\x02\x00\x00\x00"
    assert encode(Progress(127, [], [History(127 + 127)], 127 + 128)) == b"\x02\x7f\x80\x01\x00\x7f\x00"
    assert WHOLE.running == 1
    with pytest.raises(ValueError, match="in version 3, not 2"):
        decode(b"\x03\x00\x00\x00")


def test_what_is_left_out_by_each_limit() -> None:
    """The newest goes first; what is unfinished has two thirds of the room, what is finished the rest."""
    kept = {}
    for most_bytes in range(6, 30):
        packed = encode(WHOLE, most_bytes)
        assert len(packed) <= most_bytes
        found = decode(packed)
        kept[most_bytes] = (len(found.ahead), len(found.history))
    assert kept == {
        6: (0, 0), 7: (0, 0), 8: (0, 1), 9: (0, 1), 10: (0, 1), 11: (0, 1), 12: (3, 1), 13: (3, 1), 14: (0, 2),
        15: (0, 2), 16: (3, 2), 17: (3, 2), 18: (4, 2), 19: (4, 2), 20: (3, 3), 21: (3, 3), 22: (4, 3), 23: (4, 3),
        24: (4, 3), 25: (5, 3), 26: (5, 3), 27: (5, 3), 28: (5, 3), 29: (5, 3),
    }  # fmt: skip


def test_what_does_not_fit_ends_the_list_though_a_shorter_one_would_fit() -> None:
    long_then_short = Progress(0, [0, 100_000, 100_002], [History(5, 1, 2**40, 2**40), History(6, 1)], 100_003)
    found = decode(encode(long_then_short, 14))
    assert list(found.history) == []
    assert list(found.ahead) in ([0], [0, 100_000])


def test_of_a_new_record_nothing_is_known() -> None:
    entry, start = History(7), Progress()
    assert (entry.starts, entry.failures, entry.crashes, entry.running) == (0, 0, 0, False)
    assert (start.watermark, start.taken_to, list(start.ahead), list(start.history)) == (0, 0, [], [])


def test_a_later_run_is_as_long_as_it_is_and_none_goes_past_one_that_does_not_fit() -> None:
    runs = Progress(0, [0, 5, 6, 7, 9], [], 10)
    assert list(decode(encode(runs)).ahead) == [0, 5, 6, 7, 9]
    apart = Progress(0, [0, 100_000, 100_002], [], 100_003)
    assert [list(decode(encode(apart, most)).ahead) for most in (9, 10, 13, 14, 16)] == [
        [], [0], [0], [0, 100_000], [0, 100_000, 100_002],
    ]  # fmt: skip
