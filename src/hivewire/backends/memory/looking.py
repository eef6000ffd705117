"""What a queue in memory holds, seen without taking it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, nsmallest
from typing import Literal

from hivewire.backend import Waiting
from hivewire.backends.memory.queue import Lane, Queue


def peek(queue: Queue, limit: int, after: str | None, *, delayed_only: bool) -> list[Waiting]:
    found = _delayed(queue, after or "")
    if not delayed_only:
        waiting = _waiting(queue, after or "")
        page = nsmallest(limit, waiting, key=lambda each: each.cursor)
        if len(page) == limit:
            return page
        return page + nsmallest(limit - len(page), found, key=lambda each: each.cursor)
    return nsmallest(limit, found, key=lambda each: each.cursor)


def _waiting(queue: Queue, after: str) -> Iterator[Waiting]:
    for lane in queue.lanes.values():
        for place, fetched in enumerate(lane.records):
            cursor = f"r{fetched.at:016d}"
            if cursor > after:
                yield Waiting(
                    cursor=cursor,
                    record=fetched.record,
                    state=_state(lane, place),
                    stored_at=fetched.stored_at,
                    due_at=lane.due_at or 0.0 if place == 0 else 0.0,
                    starts=fetched.starts,
                    failures=fetched.failures,
                )


def _state(lane: Lane, place: int) -> Literal["ready", "in_flight", "scheduled"]:
    if place < lane.taken:
        return "in_flight"
    return "scheduled" if place == 0 and lane.due_at is not None else "ready"


def _delayed(queue: Queue, after: str) -> Iterator[Waiting]:
    for due_at, tie, record, stored_at in queue.scheduled:
        cursor = _cursor(due_at, tie)
        if cursor > after:
            yield Waiting(cursor=cursor, record=record, state="scheduled", stored_at=stored_at, due_at=due_at)


def _cursor(due_at: float, tie: int) -> str:
    return f"s{due_at:018.6f}-{tie:016d}"


def withdraw(queue: Queue, cursors: Sequence[str]) -> list[str]:
    wanted = set(cursors)
    gone = [cursor for due_at, tie, _, _ in queue.scheduled if (cursor := _cursor(due_at, tie)) in wanted]
    if gone:
        removed = set(gone)
        queue.scheduled = [entry for entry in queue.scheduled if _cursor(entry[0], entry[1]) not in removed]
        heapify(queue.scheduled)
        queue.size -= len(gone)
    return gone
