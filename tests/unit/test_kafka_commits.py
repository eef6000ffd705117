"""What is committed together, and how often the brokers are asked when they refuse."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from hivewire.backend import Saved
from hivewire.backends.kafka import commits
from hivewire.backends.kafka.commits import Commits, Save


class Group:
    """Refuses until a time."""

    def __init__(self, until: float) -> None:
        self.now = 100.0
        self.until = 100.0 + until
        self.asked: list[list[int]] = []

    def commit(self, offsets: list[TopicPartition], **how: Any) -> list[TopicPartition]:
        self.asked.append([at.offset for at in offsets])
        if self.now < self.until:
            raise KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
        return offsets


def save(watermark: int) -> Save:
    return Save({("topic", 0): (1, Saved(watermark, b"", 0, 0, ()))}, asyncio.get_running_loop().create_future())


async def test_a_refused_commit_is_tried_ever_less_often_and_goes_with_the_newest_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = Group(until=1.0)
    monkeypatch.setattr(commits, "time", Mock(monotonic=lambda: group.now))
    waiting = Commits()
    first, second = save(5), save(7)
    waiting.add(first)
    answered: list[Save] = []
    is_alone = True
    while not answered:
        answered = waiting.next(group, {("topic", 0): 1})  # type: ignore[arg-type]
        group.now += 0.002
        if len(group.asked) == 3 and is_alone:
            waiting.add(second)
            is_alone = False
    assert group.now < 101.1
    assert 20 <= len(group.asked) <= 30
    assert answered == [first, second]
    assert group.asked[-1] == [7]
    assert not waiting.wait
    asked = len(group.asked)
    waiting.add(save(8))
    assert waiting.next(group, {("topic", 0): 1})  # type: ignore[arg-type]
    assert len(group.asked) == asked + 1
