"""The order of what is told of a message, and what of the trail is dropped."""

from __future__ import annotations

from itertools import permutations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.chunks import beyond, pack, unpack
from hivewire.rules.trail import Event, Place, in_order, sentence, whereabouts


def _event(at: float, what: str, attempt: int = 0, replay: int = 0, id: str = "a") -> Event:
    return Event(at, id, replay, what, "coder", attempt)  # type: ignore[arg-type]  # a plain str in tests


def _told(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.what, event.attempt) for event in in_order(events)]


def test_a_sender_that_hears_late_is_told_first() -> None:
    late = [_event(5, "sent"), _event(6, "stored"), _event(3, "started", 1), _event(4, "acked", 1)]
    for events in permutations(late):
        assert _told(list(events)) == [("sent", 0), ("stored", 0), ("started", 1), ("acked", 1)]


def test_a_later_life_is_not_moved_before_the_first() -> None:
    events = [_event(1, "sent"), _event(2, "dead", 1), _event(3, "replayed", replay=1), _event(4, "started", 1, 1)]
    assert [event.what for event in in_order(events)] == ["sent", "dead", "replayed", "started"]


def test_what_is_told_at_one_time_stays_as_it_was_noted() -> None:
    assert _told([_event(1, "failed", 1), _event(1, "dead", 1)]) == [("failed", 1), ("dead", 1)]


def test_a_refused_send_stays_where_it_was() -> None:
    assert _told([_event(1, "refused"), _event(2, "sent"), _event(3, "stored")])[0] == ("refused", 0)


_ids = st.sampled_from(["a", "a@x", "ab", "b", "@"])


@given(st.lists(st.tuples(st.floats(0, 9), _ids)))
def test_a_chunk_tells_of_the_message_and_its_copies_alone(noted: list[tuple[float, str]]) -> None:
    found = unpack(pack("host:1", [_event(at, "acked", id=id) for at, id in noted]), "a")
    assert [(event.at, event.id) for event in found] == [(at, id) for at, id in noted if id in ("a", "a@x")]
    assert {event.worker for event in found} <= {"host:1"}


def test_a_chunk_of_another_version_is_passed_over() -> None:
    assert unpack(b"\x93\x02\xa1w\x91\x91\x01", "a") == []
    chunk = pack("w", [_event(1, "acked")])
    assert chunk.startswith(b"\x93\x01")  # an array of three, version 1: it is in people's stores
    assert len(unpack(chunk, "a")) == 1
    assert unpack(b"\x93\x02" + chunk[2:], "a") == []
    assert unpack(b"", "a") == []


@given(st.lists(st.integers(0, 20)), st.integers(0, 50))
def test_the_oldest_go_and_no_more_than_needed(sizes: list[int], most: int) -> None:
    gone = beyond(sizes, most)
    assert sum(sizes[gone:]) <= most
    assert gone == 0 or sum(sizes[gone - 1 :]) > most


def test_every_event_and_place_has_its_sentence() -> None:
    event = Event(1.0, "a", 0, "sent", "coder", 3, "by me", "host:1")
    said = {}
    for what in _every_what():
        said[what] = sentence(Event(1.0, "a", 0, what, "coder", 3, "", "host:1"))  # type: ignore[arg-type]
    assert sentence(event) == "sent by me to coder"
    assert said["lost"] == "attempt 3 lost by host:1"
    assert said["taken_over"] == "taken over by host:1"
    assert len(set(said.values())) == len(said)


def _every_what() -> tuple[str, ...]:
    from typing import get_args

    from hivewire.rules.trail import What

    return get_args(What)


def test_where_a_message_is() -> None:
    def place(state: str, starts: int) -> str:
        return whereabouts(
            Place(id="a", agent="coder", state=state, replay=0, stored_at=1.0, starts=starts, reason="why")  # type: ignore[arg-type]
        )

    assert place("ready", 0) == "waits in the queue of coder"
    assert place("ready", 1) == "waits in the queue of coder, after 1 attempt"
    assert place("scheduled", 2) == "waits in the queue of coder for its time, after 2 attempts"
    assert place("in_flight", 2) == "is with a worker of coder, in attempt 2"
    assert place("in_flight", 0) == "is with a worker of coder"
    assert place("dead", 0) == "is a dead letter of coder: why"


def test_sent_comes_before_stored_though_both_were_noted_at_once() -> None:
    assert _told([_event(5, "stored"), _event(5, "sent"), _event(5, "started", 1)])[:2] == [("sent", 0), ("stored", 0)]


def test_two_lives_that_overlap_are_told_by_time() -> None:
    events = [_event(1, "started", 1), _event(5, "started", 1, 1), _event(6, "acked", 1)]
    assert [event.at for event in in_order(events)] == [1, 5, 6]


def test_what_is_not_said_of_an_event_or_a_place() -> None:
    assert msgspec.json.encode(Event(1.0, "a", 0, "sent", "q")) == b'[1.0,"a",0,"sent","q",0,"",""]'
    place = Place(id="a", agent="q", state="ready", replay=0, stored_at=1.0, starts=0)
    assert (place.due_at, place.dead_at, place.reason) == (0.0, 0.0, "")
