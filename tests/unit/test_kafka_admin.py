"""What is asked of the brokers, without a broker."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # it is public

from hivewire.backends.kafka.admin import Admin
from hivewire.errors import ConnectionLost


async def test_a_topic_whose_first_asker_was_cancelled_is_asked_for_once() -> None:
    """The real client ends the process when a request names a topic twice."""
    asked: list[list[str]] = []
    begun, may_answer = asyncio.Event(), concurrent.futures.Future[None]()

    def create_topics(topics: Sequence[NewTopic], **how: Any) -> dict[str, concurrent.futures.Future[None]]:
        asked.append([one.topic for one in topics])
        begun.set()
        return {one.topic: may_answer for one in topics}

    admin = Admin(Mock(), "any")
    admin.clients = Mock(client=Mock(create_topics=create_topics), kept=nullcontext)

    def ask(topic: str) -> asyncio.Task[Any]:
        return asyncio.create_task(admin._creates.ask(NewTopic(topic, num_partitions=1)))

    first = ask("before")
    await begun.wait()
    cancelled, other = ask("twice"), ask("other")
    await asyncio.sleep(0)
    cancelled.cancel()
    again = ask("twice")
    may_answer.set_result(None)
    await asyncio.gather(first, other, again)
    assert [sorted(topics) for topics in asked] == [["before"], ["other", "twice"]]


@pytest.mark.parametrize("late", [1, 2])
async def test_who_gets_no_answer_in_time_asks_once_more(late: int) -> None:
    """Brokers of a busy machine are not away."""
    asked = 0

    def list_offsets(places: dict[TopicPartition, Any], **how: Any) -> dict[TopicPartition, Any]:
        nonlocal asked
        asked += 1
        answer = concurrent.futures.Future[Any]()
        if asked <= late:
            answer.set_exception(KafkaException(KafkaError(KafkaError._TIMED_OUT)))
        else:
            answer.set_result(Mock(offset=7))
        return dict.fromkeys(places, answer)

    admin = Admin(Mock(), "any")
    admin.clients = Mock(client=Mock(list_offsets=list_offsets), kept=nullcontext)
    if late == 1:
        assert await admin.ends([("topic", 0)]) == {("topic", 0): 7}
    else:
        with pytest.raises(ConnectionLost, match="look at topic"):
            await admin.ends([("topic", 0)])
    assert asked == 2


@pytest.mark.parametrize("at", [-0.001, -1e27, 0.0])
async def test_a_time_before_all_times_asks_for_the_first_record(at: float) -> None:
    """Below 0 brokers understand other things: -1 is the end, of which all before would be old."""
    asked: list[int] = []

    def list_offsets(places: dict[TopicPartition, Any], **how: Any) -> dict[Any, concurrent.futures.Future[Any]]:
        asked.extend(spec._value for spec in places.values())
        answer = concurrent.futures.Future[Any]()
        answer.set_result(Mock(offset=7))
        return dict.fromkeys(places, answer)

    admin = Admin(Mock(), "any")
    admin.clients = Mock(client=Mock(list_offsets=list_offsets), kept=nullcontext)
    assert await admin.since(("topic", 0), at) == 7
    assert asked == [0]
