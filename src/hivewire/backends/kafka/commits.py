"""Commits of the group's client: all that waits goes together, newest states, one commit under way at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from hivewire.backend import Saved
from hivewire.backends.kafka import metadata
from hivewire.backends.kafka.clients import problem
from hivewire.backends.kafka.tail import Place
from hivewire.errors import BackendError
from hivewire.rules.backoff import Backoff

_MOST_A_COMMIT: Final = 200
_PATIENCE_S: Final = 5.0
"""So long a commit is repeated: during a rebalance it is refused, and a moment later it is good."""
_AGAIN_S: Final = 0.002
_LONGEST_AGAIN_S: Final = 0.05
_LOST: Final = {KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_INSTANCE_ID}
States = Mapping[Place, tuple[int, Saved]]
"""With the token by which each partition is held."""


class Save:
    """What one caller wants committed, and who of them is refused."""

    def __init__(self, states: States, done: asyncio.Future[set[Place]]) -> None:
        self.states = states
        self.done = done
        self.until = time.monotonic() + _PATIENCE_S
        self.lost: set[Place] = set()
        self.error: BackendError | None = None


class Commits:
    """What waits. Saves are added by the loop, all else is called by the client's thread."""

    def __init__(self) -> None:
        self._saves: deque[Save] = deque()
        self._backoff = Backoff(_AGAIN_S, _LONGEST_AGAIN_S)
        self._again_at = 0.0

    def add(self, save: Save) -> None:
        self._saves.append(save)

    @property
    def wait(self) -> bool:
        return bool(self._saves)

    def hurry(self) -> None:
        """There is no later."""
        self._again_at = 0.0

    def refuse(self) -> list[Save]:
        """The end: nobody's partition is ours."""
        refused = list(self._saves)
        self._saves.clear()
        for save in refused:
            save.lost.update(save.states)
        return refused

    def next(self, client: Consumer, tokens: Mapping[Place, int]) -> list[Save]:
        """Commit some of what waits, in one; returns those who are answered. None though some wait: try again in
        a moment. While it is refused again and again, the brokers are asked ever less often."""
        if time.monotonic() < self._again_at:
            return []
        saves: list[Save] = []
        states: dict[Place, Saved] = {}
        while self._saves and len(states) < _MOST_A_COMMIT:
            save = self._saves.popleft()
            saves.append(save)
            for place, (token, saved) in save.states.items():
                if tokens.get(place) == token:
                    states[place] = saved
                else:
                    save.lost.add(place)
        if states:
            lost, error = _commit(client, states)
            if error is not None and error.retryable and time.monotonic() < saves[0].until:
                self._saves.extendleft(reversed(saves))
                self._again_at = time.monotonic() + self._backoff.next_s()
                return []
            self._backoff.is_over()
            for save in saves:
                save.lost |= lost & save.states.keys()
                save.error = error
        return saves


def _commit(client: Consumer, states: Mapping[Place, Saved]) -> tuple[set[Place], BackendError | None]:
    offsets = [
        TopicPartition(topic, number, saved.watermark, metadata=metadata.pack(saved))
        for (topic, number), saved in states.items()
    ]
    try:
        answers: Sequence[TopicPartition] = client.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() in _LOST:
            return set(states), None
        return set(), problem("commit", error)
    failed = [((at.topic, at.partition), at.error) for at in answers if at.error is not None]
    lost = {place for place, error in failed if error.code() in _LOST}
    others = [error for _, error in failed if error.code() not in _LOST]
    return lost, problem("commit", others[0]) if others else None


def commit_start(client: Consumer, place: Place) -> TopicPartition:
    """Nothing of this partition is finished. Raises `KafkaException`."""
    start = TopicPartition(*place, 0)
    answers: Sequence[TopicPartition] = client.commit(offsets=[start], asynchronous=False)
    for at in answers:
        if at.error is not None:
            raise KafkaException(at.error)
    return start
