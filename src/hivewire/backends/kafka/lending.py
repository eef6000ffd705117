"""A client of a share group: what the brokers lend this process, record by record.

All calls of the client are made by its one thread: it refuses two at a time. It asks while somebody wants something:
what is lent to a process that does not ask is kept from others for nothing. The client gives nothing new before all
of the last batch is acknowledged, so one handler that lasts keeps the batches behind it away from this process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from confluent_kafka import AcknowledgeType, KafkaException, ShareConsumer

from hivewire.backends.kafka.packing import KafkaMessage
from hivewire.backends.kafka.seat import lease_clock
from hivewire.rules.words import At

log = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_COMMIT_S: Final = 5.0
_RETRY_S: Final = 0.2
_TOGETHER: Final = 1_000

Answer = Callable[[set[At]], None]
"""Told which were refused: they were lent to somebody else meanwhile, or nobody knows."""


class Lending:
    """`arrived` is told of each batch, on the event loop, and since when at the latest it may be lent to us."""

    def __init__(
        self, options: dict[str, Any], topic: str, arrived: Callable[[Sequence[KafkaMessage], float], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._topic = topic
        self._arrived = arrived
        self._answers: deque[tuple[dict[At, AcknowledgeType], Answer]] = deque()
        self._wanted = threading.Event()
        self._demand = 0
        self._ended = False
        self._gives_back = True
        self._open: set[At] = set()
        """On the thread: of the last batch, those that are not acknowledged."""
        self._thread = threading.Thread(target=self._run, name="hivewire-kafka-share", daemon=True)
        self._thread.start()

    # -- on the event loop

    @contextmanager
    def wanting(self) -> Iterator[None]:
        """For as long as somebody waits for a message."""
        self._demand += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._demand -= 1

    async def acknowledge(self, finished: Sequence[At], released: Sequence[At]) -> set[At]:
        """Returns those that were refused."""
        kinds = dict.fromkeys(released, AcknowledgeType.RELEASE) | dict.fromkeys(finished, AcknowledgeType.ACCEPT)
        if not kinds or self._is_ending():
            return set(kinds)
        done: asyncio.Future[set[At]] = self._loop.create_future()

        def answer(refused: set[At]) -> None:
            if not done.done():
                done.set_result(refused)

        self._answers.append((kinds, answer))
        self._wanted.set()
        if self._is_ending():
            self._refuse_all()
        return await done

    def _is_ending(self) -> bool:
        return self._ended

    @property
    def has_failed(self) -> bool:
        return self._ended and not self._thread.is_alive()

    async def close(self, *, gives_back: bool = True) -> None:
        """What is still lent goes back at once; if not, when its time is over."""
        self._gives_back, self._ended = gives_back, True
        self._wanted.set()
        await asyncio.to_thread(self._thread.join)

    # -- on the thread

    def _run(self) -> None:
        client = ShareConsumer(self._options)
        try:
            client.subscribe([self._topic])
            since = lease_clock()
            while not self._ended:
                if self._answers:
                    self._answer(client)
                elif self._open or not self._demand:
                    self._wanted.wait(_POLL_S)
                    self._wanted.clear()
                else:
                    since = self._take(client, since)
            while self._answers:
                self._answer(client)
            if self._gives_back and self._open:
                self._commit(client, dict.fromkeys(self._open, AcknowledgeType.RELEASE))
        except Exception:
            log.exception("the client of a share group failed", extra={"topic": self._topic})
        finally:
            self._ended = True
            self._refuse_all()
            self._end(client)

    def _take(self, client: ShareConsumer, since: float) -> float:
        """A batch may have been lent at any time since the last answer."""
        try:
            polled = client.poll(_POLL_S)
        except KafkaException as error:
            log.warning("nothing is lent yet", extra={"topic": self._topic, "error": str(error)})
            self._wanted.wait(_RETRY_S)
            return lease_clock()
        batch: list[KafkaMessage] = []
        for message in polled:
            if message.error() is None:
                batch.append(message)
            else:
                log.warning("nothing is lent yet", extra={"topic": self._topic, "error": str(message.error())})
        if batch:
            self._open = {(message.partition(), message.offset()) for message in batch}
            self._tell(self._arrived, batch, since)
        return lease_clock()

    def _answer(self, client: ShareConsumer) -> None:
        """All that waits goes in one commit."""
        kinds: dict[At, AcknowledgeType] = {}
        answers: list[tuple[dict[At, AcknowledgeType], Answer]] = []
        while self._answers and len(kinds) < _TOGETHER:
            some, answer = self._answers.popleft()
            kinds.update(some)
            answers.append((some, answer))
        if answers:
            refused = self._commit(client, kinds)
            for some, answer in answers:
                self._tell(answer, refused & some.keys())

    def _commit(self, client: ShareConsumer, kinds: dict[At, AcknowledgeType]) -> set[At]:
        sent = {at: kind for at, kind in kinds.items() if at in self._open}
        refused = kinds.keys() - sent.keys()
        try:
            for (partition, offset), kind in sent.items():
                client.acknowledge_offset(self._topic, partition, offset, kind)
            errors = client.commit_sync(_COMMIT_S) if sent else {}
            failed = {place.partition for place, error in errors.items() if error is not None}
        except KafkaException as error:
            log.warning("it is not known what was acknowledged", extra={"topic": self._topic, "error": str(error)})
            failed = {partition for partition, _ in sent}
        self._open -= sent.keys()
        return refused | {at for at in sent if at[0] in failed}

    def _refuse_all(self) -> None:
        while self._answers:
            some, answer = self._answers.popleft()
            self._tell(answer, set(some))

    def _end(self, client: ShareConsumer) -> None:
        try:
            client.close()
        except KafkaException as error:
            log.warning("left the share group without a word", extra={"topic": self._topic, "error": str(error)})

    def _tell(self, listener: Callable[..., None], *told: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(listener, *told)
