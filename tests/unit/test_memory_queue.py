"""A queue in memory: what is settled at once is settled as each would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hivewire.backend import Fetched, QueueSpec, Record, life
from hivewire.backends.memory.queue import Holder, Queue
from hivewire.rules.dedup import Window


def taken(number: int, holder: Holder, *, replay: int = 0) -> tuple[Queue, list[Fetched]]:
    """A queue with ten records of one key, and the first of them in somebody's hand."""
    queue = Queue(QueueSpec(name="q"), lambda: 0.0, iter(range(1, 9)), Window(100, 60.0))
    queue.append([Record(f"m{place}", "k", b"", replay=replay) for place in range(10)], 0.0)
    return queue, queue.take(holder, number, lanes=1, run=number, starting=1)


def in_order(batch: list[Fetched]) -> list[list[Fetched]]:
    return [batch]


def in_two(batch: list[Fetched]) -> list[list[Fetched]]:
    return [batch[:3], batch[3:]]


def backwards(batch: list[Fetched]) -> list[list[Fetched]]:
    return [batch[::-1]]


def not_the_first(batch: list[Fetched]) -> list[list[Fetched]]:
    return [batch[2:], batch[:2]]


@pytest.mark.parametrize("parts", [in_order, in_two, backwards, not_the_first])
@pytest.mark.parametrize("number", [6, 10])
@pytest.mark.parametrize("replay", [0, 2])
def test_all_that_is_done_leaves_the_queue(
    parts: Callable[[list[Fetched]], Sequence[list[Fetched]]], number: int, replay: int
) -> None:
    holder = Holder("me")
    queue, batch = taken(number, holder, replay=replay)
    left = number
    for part in parts(batch):
        refused: list[Fetched] = []
        queue.finish(holder, part, 0.0, refused)
        left -= len(part)
        assert (refused, queue.in_flight, queue.size) == ([], left, 10 - number + left)
    assert all(life(fetched.record) in queue.settled for fetched in batch)
    assert ("k" in queue.lanes) is (number < 10)
    assert holder.held() == ()
    again = queue.take(holder, 10, lanes=1, run=10, starting=0)
    assert [fetched.record.id for fetched in again] == [f"m{place}" for place in range(number, 10)]


def test_what_is_not_ones_own_is_refused() -> None:
    mine, yours = Holder("me"), Holder("you")
    queue, batch = taken(4, mine)
    refused: list[Fetched] = []
    queue.finish(yours, batch, 0.0, refused)
    assert (refused, queue.in_flight, queue.size) == (batch, 4, 10)
    refused.clear()
    queue.finish(mine, [*batch, *batch[:2]], 0.0, refused)
    assert (refused, queue.in_flight, queue.size) == (batch[:2], 0, 6)


def test_what_was_settled_before_is_seen_in_its_batch() -> None:
    holder = Holder("me")
    queue, batch = taken(10, holder)
    queue.finish(holder, batch, 0.0, [])
    queue.append([Record("new", "k", b""), Record("m3", "k", b""), Record("m4", "k", b"", replay=1)], 0.0)
    assert [fetched.seen for fetched in queue.take(holder, 9, lanes=9, run=9, starting=0)] == [False, True, False]
