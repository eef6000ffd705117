"""The watermark, against two sets: what was taken and what is finished."""

from __future__ import annotations

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
            mark.taken(at)
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
                    mark.taken(at)
        safe = highest_safe(start, taken, finished)
        assert mark.at == safe
        assert mark.ahead == sorted(at for at in finished if at >= safe)
        assert all(mark.is_finished(at) == (at in finished) for at in taken)
