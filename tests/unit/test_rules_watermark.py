"""The watermark, against two sets: what was taken and what is finished."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.watermark import Watermark

_moves = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 3)),  # with gaps: a compacted log has them
        st.tuples(st.just("finish"), st.integers(0, 50)),
        st.tuples(st.just("move"), st.integers(0, 50)),
    ),
    max_size=80,
)


def highest_safe(start: int, taken: set[int], finished: set[int]) -> int:
    """The first taken position that is not finished, else the one after the last taken."""
    return min(taken - finished, default=max(taken, default=start - 1) + 1)


@given(start=st.integers(0, 5), moves=_moves)
def test_the_watermark_never_passes_what_is_unfinished(start: int, moves: list[tuple[str, int]]) -> None:
    mark, end = Watermark(start), start
    taken: set[int] = set()
    finished: set[int] = set()
    log: list[int] = []
    for move, number in moves:
        if move == "take":
            at = end + number - 1
            end = at + 1
            log.append(at)
            assert mark.take(at)
            taken.add(at)
        elif move == "finish" and taken - finished:
            at = sorted(taken - finished)[number % len(taken - finished)]
            mark.finish(at)
            finished.add(at)
        elif move == "move":  # another owner: it has the saved state and reads from the watermark on
            saved = mark.at
            mark = Watermark(saved, mark.ahead)
            for at in log:
                if at >= saved:
                    assert mark.take(at) == (at not in finished)
        safe = highest_safe(start, taken, finished)
        assert mark.at == safe
        assert mark.ahead == sorted(at for at in finished if at >= safe)
        assert all(mark.is_finished(at) == (at in finished) for at in taken)


def test_what_an_earlier_owner_finished_is_not_open_again() -> None:
    mark = Watermark(10, ahead=[9, 10, 11, 13])
    assert not mark.take(10)
    assert not mark.take(11)
    assert (mark.at, mark.ahead) == (12, [13])
    assert mark.take(12)
    assert (mark.at, mark.ahead) == (12, [13])
    mark.finish(12)  # nothing is open: what is behind is forgotten, and what is ahead is not
    assert (mark.at, mark.ahead) == (13, [13])
    assert not mark.take(13)
    assert (mark.at, mark.ahead, mark.end) == (14, [], 14)


@given(
    start=st.integers(0, 5),
    ahead=st.sets(st.integers(0, 20), max_size=4),
    runs=st.lists(
        st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.sets(st.integers(0, 9))), max_size=8
    ),
)
def test_by_runs_it_is_as_one_by_one(start: int, ahead: set[int], runs: list[tuple[list[int], set[int]]]) -> None:
    """Of each run those with these turns are finished at once, after the next run was taken."""
    mark, other = Watermark(start, ahead), Watermark(start, ahead)
    end, before = start, list[int]()
    for steps, finished in runs:
        run = [end + step - 1 for step in accumulate(steps)]
        end = run[-1] + 1
        at_once = mark.take_run(run)
        taken = [other.take(at) for at in run]
        assert at_once == all(taken), (run, taken)
        if not at_once:
            assert [mark.take(at) for at in run] == taken
        open_now = [at for at, was_taken in zip(run, taken, strict=True) if was_taken]
        done = [at for turn, at in enumerate(before + open_now) if turn in finished]
        mark.finish_all(done)
        for at in done:
            other.finish(at)
        before = [at for at in before + open_now if at not in done]
        assert (mark.at, mark.ahead, mark.end) == (other.at, other.ahead, other.end)
        assert not mark.take_run(run)  # it comes again


def test_only_what_was_taken_is_finished() -> None:
    mark = Watermark(0)
    for at in (0, 1, 3):
        assert mark.take(at)
    mark.finish(0)
    mark.finish(3)
    assert [mark.is_finished(at) for at in range(6)] == [True, False, False, True, False, False]
    mark.finish(1)
    assert [mark.is_finished(at) for at in range(6)] == [True, True, True, True, False, False]


def test_what_lies_below_is_not_remembered() -> None:
    mark = Watermark(0)
    for at in range(1_000):
        assert mark.take(at)
    for at in range(999):
        mark.finish(at)
        assert len(mark._ahead) <= 2 * len(mark._open) + 16
    assert mark.at == 999
    assert len(mark._ahead) <= 18
    mark.finish(999)
    assert (mark.at, mark.ahead) == (1_000, [])


def test_what_was_finished_ahead_is_forgotten_when_it_lies_below() -> None:
    mark = Watermark(0)
    for at in range(200):
        assert mark.take(at)
    for at in range(199, 99, -1):
        mark.finish(at)
    for at in range(100):
        mark.finish(at)
    assert len(mark._ahead) <= 16


def test_what_is_ahead_is_kept_when_it_is_tidied() -> None:
    mark = Watermark(0)
    for at in range(40):
        assert mark.take(at)
    for at in range(39, 0, -1):
        mark.finish(at)
    assert (mark.at, mark.ahead) == (0, list(range(1, 40)))


def test_what_comes_again_is_held_once_and_what_is_finished_is_not_opened() -> None:
    mark = Watermark(5, ahead=[7])
    assert [mark.take(at) for at in (5, 6, 5, 7, 7, 3)] == [True, True, True, False, False, False]
    mark.finish(5)
    assert not mark.take(5)
    assert (mark.at, mark.ahead) == (6, [7])
    mark.finish(6)
    assert [mark.take(at) for at in (5, 6, 7)] == [False] * 3
    assert (mark.at, mark.ahead, mark.end) == (8, [], 8)
