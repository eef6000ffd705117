"""How this process speaks to the brokers: options of librdkafka, and what its errors mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from hivewire.backends.kafka import security
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import Settings

_told = logging.getLogger("hivewire.backends.kafka.librdkafka")


class _Quiet:
    """librdkafka's own lines, for those who look for them: what matters is told by who asked for it."""

    def __init__(self, refusals: security.Refusals) -> None:
        self._refusals = refusals

    def log(self, level: int, text: str, *arguments: object) -> None:
        _told.debug(text, *arguments)
        self._refusals.note_line(text % arguments if arguments else text)


HEARTBEAT_S: Final = 0.3
MAX_POLL_S: Final = 86_400.0
"""A member that waits for its handlers before it gives partitions up does not poll meanwhile."""
_ENVELOPE_BYTES: Final = 64 * 1024
ROOM_BYTES: Final = 8 << 20
"""Above the largest message of ours: for headers, for tracebacks beside dead letters, for what strangers send."""

_AHEAD_BYTES: Final = 256 * 1024
"""Of one partition in one answer, compressed as it is: what is read ahead and not handled here is work for nothing."""
_FULL_LOOK_MS: Final = 10
"""A client that has read enough ahead looks again after so long; by itself it stands still for a second, while what it
had is gone in a tenth of that."""
_LEADERS_S: Final = 15.0
_FIRST_LOOK_S: Final = 0.02
_LOOK_EACH_S: Final = 0.3
_T = TypeVar("_T")
_NO_LEADER: Final = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._NOENT,
}
_FORBIDDEN: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
    KafkaError._INVALID_ARG,
    KafkaError._FATAL,
    KafkaError.RECORD_LIST_TOO_LARGE,
}


_TOO_LATE: Final = {KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT}


class NotYet(ConnectionLost):
    """The brokers are still telling each other who leads what."""


class Late(ConnectionLost):
    """No answer came in time; the brokers may be there, and busy."""


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Again while leaders are being found, for a while, and ever less often: busy brokers are asked by
    many then. And once more when no answer came in time."""
    loop = asyncio.get_running_loop()
    deadline, wait_s, was_late = loop.time() + _LEADERS_S, _FIRST_LOOK_S, False
    while True:
        try:
            return await ask()
        except Late:
            if was_late:
                raise
            was_late = True
        except NotYet:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LOOK_EACH_S)


def problem(doing: str, error: KafkaError | KafkaException) -> BackendError:
    """The error as ours: what may pass by itself is `ConnectionLost`."""
    reason = error.args[0] if isinstance(error, KafkaException) else error
    if not isinstance(reason, KafkaError):
        return BackendError(f"{doing}: {reason}")
    if reason.code() in _NO_LEADER or "fenced" in reason.str():  # a broker that has just come back
        return NotYet(f"{doing}: {reason.str()} ({reason.name()})")
    if reason.code() in _FORBIDDEN or reason.fatal():
        return BackendError(f"{doing}: {reason.str()} ({reason.name()}){_advice(reason)}")
    kind = Late if reason.code() in _TOO_LATE else ConnectionLost
    return kind(f"{doing}: {reason.str()} ({reason.name()})")


def _advice(error: KafkaError) -> str:
    code = error.code()
    if code == KafkaError.MSG_SIZE_TOO_LARGE:
        return "; raise max.message.bytes of the topic and message.max.bytes of the brokers, or send smaller messages"
    if code == KafkaError.INVALID_REPLICATION_FACTOR:
        return "; set KAFKA_REPLICATION_FACTOR to at most the number of brokers"
    if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
        return "; give this user Create, Describe, Read, Write and Delete on topics with its prefix"
    return ""


class Options:
    """What all clients of one backend share."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        kafka = settings.kafka
        self._settings = settings
        self.kafka = kafka
        most = settings.max_message_size_bytes
        self.largest_bytes = most + most // 2 + _ENVELOPE_BYTES
        """Of one message as JSON, with its headers."""
        self.refusals = security.Refusals()
        self.common: dict[str, Any] = {
            "bootstrap.servers": ",".join(kafka.brokers),
            "client.id": client_id,
            "logger": _Quiet(self.refusals),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "retry.backoff.ms": 50,
            "topic.metadata.refresh.fast.interval.ms": 50,
            "socket.connection.setup.timeout.ms": 5_000,
            "log.connection.close": False,
            "error_cb": self.refusals.note,
            **security.options(kafka),
        }

    @property
    def is_safe(self) -> bool:
        return self._settings.kafka.require_acks == "all"

    def admin(self) -> dict[str, Any]:
        """It tells of connections that end: see `Refusals`."""
        return {**self.common, "log.connection.close": True}

    def producer(self, *, is_safe: bool) -> dict[str, Any]:
        """`is_safe`: whatever is wanted for messages."""
        kafka = self._settings.kafka
        return {
            **self.common,
            "acks": "all" if is_safe else kafka.require_acks,
            "enable.idempotence": is_safe,
            "compression.type": kafka.compression,
            "linger.ms": 0,
            "batch.num.messages": kafka.batch_size,
            "message.max.bytes": self.largest_bytes + ROOM_BYTES,
            "message.timeout.ms": int(kafka.write_timeout_s * 1000),
            "topic.metadata.propagation.max.ms": 2_000,
            "request.timeout.ms": min(int(kafka.write_timeout_s * 1000), 30_000),
            "queue.buffering.max.messages": 1_000_000,
        }

    def _consumer(self) -> dict[str, Any]:
        kafka = self._settings.kafka
        return {
            **self.common,
            "group.id": kafka.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.error.backoff.ms": 10,
            "fetch.min.bytes": kafka.min_bytes,
            "fetch.max.bytes": max(kafka.max_bytes, self.largest_bytes + ROOM_BYTES),
            "message.max.bytes": self.largest_bytes + ROOM_BYTES,
            "queued.max.messages.kbytes": 16_384,
            "fetch.queue.backoff.ms": _FULL_LOOK_MS,
            "allow.auto.create.topics": False,
            "enable.partition.eof": True,
        }

    def member(self) -> dict[str, Any]:
        """Of the consumer group."""
        group: dict[str, Any] = {
            "session.timeout.ms": int(self._settings.lease_s * 1000),
            "heartbeat.interval.ms": int(HEARTBEAT_S * 1000),
            "partition.assignment.strategy": "cooperative-sticky",
        }
        if self._settings.kafka.group_protocol == "consumer":
            group = {"group.protocol": "consumer"}  # the rest is the brokers' to say
        return {
            **self._consumer(),
            **group,
            "max.poll.interval.ms": int(MAX_POLL_S * 1000),
            "fetch.wait.max.ms": int(self._settings.kafka.max_wait_s * 1000),
            "queued.min.messages": 1_000,
            "fetch.message.max.bytes": _AHEAD_BYTES,
        }

    def sharer(self, group: str) -> dict[str, Any]:
        """Of a share group."""
        kafka = self._settings.kafka
        return {
            **self.common,
            "group.id": group,
            "share.acknowledgement.mode": "explicit",
            "max.poll.records": 100,
            "max.poll.interval.ms": int(MAX_POLL_S * 1000),
            "fetch.wait.max.ms": int(kafka.max_wait_s * 1000),
            "fetch.max.bytes": max(kafka.max_bytes, self.largest_bytes + ROOM_BYTES),
            "message.max.bytes": self.largest_bytes + ROOM_BYTES,
        }

    def reader(self, wait_s: float) -> dict[str, Any]:
        """Reads what it is told, without a group."""
        return {
            **self._consumer(),
            "fetch.wait.max.ms": int(wait_s * 1000),
            "fetch.min.bytes": 1,
            "max.poll.interval.ms": int(MAX_POLL_S * 1000),
        }
