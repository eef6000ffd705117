"""What was read of partitions of the group, in runs, on the thread that reads."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping

import msgspec
from confluent_kafka import KafkaError

from hivewire.backend import Fetched
from hivewire.backends.kafka.packing import KafkaMessage, record_of, stored_at
from hivewire.backends.kafka.tail import Place

log = logging.getLogger(__name__)


class Run(msgspec.Struct):
    """What was read of one partition, in rising order: of a topic that was made anew, a run of its own."""

    place: Place
    token: int
    batch: list[Fetched]
    reached: int = -1
    """All below this offset was read; -1: nothing was learned."""


def parted(
    messages: list[KafkaMessage], tokens: Mapping[Place, int], reading: Container[Place]
) -> tuple[list[Run], list[KafkaMessage]]:
    """Each is let go of at once: a thousand with their headers would be thousands of objects for the collector of
    garbage to look through."""
    runs: list[Run] = []
    others: list[KafkaMessage] = []
    topic, number, expected = "", -1, 0  # runs of one partition are common
    token: int | None = None
    messages.reverse()
    while messages:
        message = messages.pop()
        offset = message.offset()
        if message.partition() != number or message.topic() != topic or (offset is not None and offset < expected):
            topic, number = message.topic(), message.partition()
            token = tokens.get((topic, number))
            if token is not None:
                run = Run((topic, number), token, [])
                append = run.batch.append
                runs.append(run)
        error = message.error()
        if token is None:
            if (topic, number) in reading:
                others.append(message)
            elif error is not None and error.code() != KafkaError._PARTITION_EOF:
                log.warning("reading failed: %s", str(error))
        elif error is None:
            append(Fetched(number, offset, token, record_of(message), stored_at(message)))
            run.reached = expected = offset + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            run.reached = expected = offset
        else:
            log.warning("reading failed: %s", str(error))
    return runs, others
