"""The trail: what happened to a message, told in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

What = Literal[
    "sent", "stored", "copied", "refused", "duplicate", "taken_over", "started", "failed", "returned", "lost", "acked",
    "dead", "replayed", "purged", "cancelled",
]  # fmt: skip

_BEFORE: Final[dict[str, int]] = {"sent": 0, "stored": 1}
"""A sender hears that its message is stored when others may have it already: these come first all the same."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to one life of a message. `at` is the store's time; `worker` the process that tells."""

    at: float
    id: str
    replay: int
    what: What
    queue: str
    attempt: int = 0
    text: str = ""
    worker: str = ""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a message is now. `due_at`: of one that waits for its time; `reason`: of a dead letter."""

    id: str
    agent: str
    state: Literal["ready", "in_flight", "scheduled", "dead"]
    replay: int
    stored_at: float
    starts: int
    due_at: float = 0.0
    dead_at: float = 0.0
    reason: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one message: what was recorded (setting `trail`), in order, and where it is now.
    `unsearched` are agents whose queues cannot be looked through."""

    id: str
    events: Sequence[Event]
    places: Sequence[Place]
    unsearched: Sequence[str] = ()


def in_order(events: Iterable[Event]) -> list[Event]:
    """As it happened: by life, and within one by time, but for what must have come first.

    >>> started, sent = Event(1.0, "a", 0, "started", "q", 1), Event(1.5, "a", 0, "sent", "q")
    >>> [event.what for event in in_order([started, sent])]
    ['sent', 'started']
    """
    ordered = sorted(events, key=lambda event: event.at)
    first: dict[tuple[str, int], float] = {}
    for event in ordered:
        if event.what not in _BEFORE and event.what != "refused":
            first.setdefault((event.id, event.replay), event.at)

    def place(event: Event) -> tuple[float, int]:
        rank = _BEFORE.get(event.what, 2)
        if rank == 2:
            return event.at, rank
        return min(event.at, first.get((event.id, event.replay), event.at)), rank

    return sorted(ordered, key=place)


_SAYS: Final[dict[str, str]] = {
    "sent": "sent {text} to {queue}",
    "stored": "stored",
    "copied": "copied {text}",
    "refused": "refused by the queue of {queue}",
    "duplicate": "duplicate",
    "taken_over": "taken over by {worker}",
    "started": "attempt {attempt} started at {worker}",
    "failed": "attempt {attempt} failed",
    "returned": "attempt {attempt} given back",
    "lost": "attempt {attempt} lost by {worker}",
    "acked": "acknowledged by {worker}",
    "dead": "dead letter of {queue}",
    "replayed": "replayed to {queue}",
    "purged": "purged from the dead letters of {queue}",
    "cancelled": "cancelled",
}


def sentence(event: Event) -> str:
    """What happened, for people.

    >>> sentence(Event(0.0, "a", 0, "failed", "coder", 2, "ValueError: no; again in 0.5 s", "host:7"))
    'attempt 2 failed: ValueError: no; again in 0.5 s'
    """
    says = _SAYS[event.what]
    told = says.format(queue=event.queue, attempt=event.attempt, worker=event.worker, text=event.text)
    return told if not event.text or "{text}" in says else f"{told}: {event.text}"


def whereabouts(place: Place) -> str:
    """Where a message is, for people."""
    tries = f", after {place.starts} attempt{'s' if place.starts != 1 else ''}" if place.starts else ""
    match place.state:
        case "ready":
            return f"waits in the queue of {place.agent}{tries}"
        case "in_flight":
            return f"is with a worker of {place.agent}" + (f", in attempt {place.starts}" if place.starts else "")
        case "scheduled":
            return f"waits in the queue of {place.agent} for its time{tries}"
        case _:
            return f"is a dead letter of {place.agent}{tries}: {place.reason}"
