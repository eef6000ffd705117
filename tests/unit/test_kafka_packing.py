"""Records as messages of Kafka, names of topics, and what a commit carries; without a broker."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.backend import Letter, Saved
from hivewire.backends.kafka import metadata
from hivewire.backends.kafka.names import Names, key_bytes, partition_of
from hivewire.backends.kafka.packing import headers_of, letter_key, pack_letter, record_of, unpack_letter
from hivewire.record import Record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
"""Without lone surrogates: no name, key or id that can be sent has one."""


class Stored:
    """A message as the client gives it."""

    def __init__(self, key: bytes | None, value: bytes | None, headers: Any = None, partition: int = 2) -> None:
        self._parts = (key, value, headers, partition)

    def key(self) -> bytes | None:
        return self._parts[0]

    def value(self) -> bytes | None:
        return self._parts[1]

    def headers(self) -> Any:
        return self._parts[2]

    def partition(self) -> int:
        return self._parts[3]

    def topic(self) -> str:
        return "t"

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_700_000_000_500


def sent(queue: str, record: Record) -> Stored:
    headers = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers_of(queue, record)]
    return Stored(key_bytes(record.key), record.body, headers)


records = st.builds(
    Record,
    id=texts,
    key=texts,
    body=st.binary(max_size=50),
    type=texts,
    sender=texts,
    ttl_s=st.none() | st.floats(0.001, 1e9),
    priority=st.integers(1, 10),
    replay=st.integers(0, 5),
    dedup_key=st.none() | texts,
)


@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert record_of(sent("q", record)) == record


@given(records)
def test_a_dead_letter_comes_back_as_it_was(record: Record) -> None:
    record.dedup_key = None
    letter = Letter(reason="rejected", error="e" * 99, attempts=3, first_at=1.5, worker="w")
    found = unpack_letter("00007", Stored(letter_key("q", record), pack_letter("q", record, letter)))
    assert (found.queue, found.record, found.letter, found.dead_at) == ("q", record, letter, 1_700_000_000.5)


@given(st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=60))
def test_anything_in_a_topic_becomes_a_record(key: bytes | None, value: bytes | None) -> None:
    record = record_of(Stored(key, value, [("hivewire", b"\xff")]))
    assert record.id
    assert record.body == (value or b"")


def test_a_message_of_the_reference_is_ordered_within_its_partition() -> None:
    body = b'{"id":"m1","type":"request","from":"planner","to":"worker/7","content":1}'
    records = [record_of(Stored(b"random", body, [("type", b"request")], partition)) for partition in (0, 1, 1)]
    assert [record.id for record in records] == ["m1"] * 3
    assert records[0].key != records[1].key == records[2].key
    assert (records[0].type, records[0].sender) == ("request", "planner")


@given(st.lists(st.text("ab._-", min_size=1, max_size=140), unique=True, min_size=2, max_size=12))
def test_topics_of_two_queues_never_meet(queues: list[str]) -> None:
    topics = [Names("p").topic(queue) for queue in queues]
    # To Kafka a dot and an underscore are the same.
    assert len({topic.replace(".", "_") for topic in topics}) == len(topics)
    assert all(len(topic) <= 249 for topic in topics)


@pytest.mark.parametrize(
    ("queue", "topic"),
    [("coder", "multiagent-coder"), ("~group/team", "multiagent-broadcast-team"), ("~reply/x", "multiagent.replies")],
)
def test_topics_are_called_as_in_the_reference(queue: str, topic: str) -> None:
    assert Names("multiagent").topic(queue) == topic


@given(texts, st.integers(1, 50))
def test_a_key_has_one_partition(key: str, partitions: int) -> None:
    found = partition_of(key_bytes(key), partitions)
    assert 0 <= found < partitions
    assert found == partition_of(key_bytes(key), partitions)


@given(st.integers(0, 2**50), st.binary(max_size=2_400), st.lists(st.floats(0, 1e10), max_size=20))
def test_what_a_commit_carries_comes_back_and_fits(watermark: int, state: bytes, due: list[float]) -> None:
    text = metadata.pack(Saved(watermark, state, finished=10_000, running=500, due_at=due))
    assert len(text) <= 3_500
    found = metadata.unpack(watermark, text)
    assert (found.watermark, found.state, found.finished, found.running) == (watermark, state, 10_000, 500)
    assert found.due_at == pytest.approx(due, abs=0.001)


@pytest.mark.parametrize("text", ["", "hello", "AAAA", "=" * 8])
def test_a_commit_of_another_tool_is_an_offset_and_nothing_more(text: str) -> None:
    assert metadata.unpack(5, text) == metadata.Committed(5, b"")
