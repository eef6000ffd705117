"""What waits goes in batches of one kind: nothing is lost, nothing twice, the oldest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.kinds import Kinds

items = st.tuples(st.sampled_from("abc"), st.integers(0, 120))


@given(st.lists(st.one_of(items, st.integers(1, 5)), max_size=40))
def test_as_a_slow_list_has_it(script: list[tuple[str, int] | int]) -> None:
    kinds = Kinds[int](most_bytes=100)
    waiting: list[tuple[str, int, int]] = []
    for number, each in enumerate([*script, *([3] * len(script))]):
        if isinstance(each, tuple):
            kind, size = each
            kinds.add(kind, number, size=size)
            waiting.append((kind, size, number))
        else:
            batch: list[tuple[str, int, int]] = []
            for kind, size, item in waiting:
                if kind == waiting[0][0] and len(batch) < each:
                    if batch and sum(size for _, size, _ in batch) + size > 100:
                        break
                    batch.append((kind, size, item))
            assert kinds.take(each) == [item for _, _, item in batch]
            waiting = [item for item in waiting if item not in batch]
        assert len(kinds) == len(waiting)
    assert not waiting
    assert kinds.take(3) == []


def test_a_batch_may_be_just_as_large_as_allowed() -> None:
    kinds = Kinds[str](most_bytes=100)
    for item, size in (("a", 60), ("b", 40), ("c", 1)):
        kinds.add("kind", item, size=size)
    assert kinds.take(9) == ["a", "b"]
    assert kinds.take(9) == ["c"]
