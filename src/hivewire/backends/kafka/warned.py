"""What `health` and `doctor` warn of: settings and numbers that cost more than their user may know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hivewire.backends.kafka.lent import delivery_limit
from hivewire.settings import Settings

_MANY_TOPICS: Final = 300


def warnings(settings: Settings, *, topics: int, brokers: int) -> Iterator[str]:
    kafka = settings.kafka
    if topics > _MANY_TOPICS:
        yield (
            f"{topics} topics with the prefix {kafka.topic_prefix}: Kafka is slow with many; make instances "
            "(coder/42) instead of agents, which share the topic of their name"
        )
    if brokers > 1 and kafka.replication_factor == 1:
        yield f"replication_factor=1 on {brokers} brokers: new topics have one copy, and are gone with its disk"
    if kafka.require_acks != "all":
        lost = (
            "a message counts as sent before any broker has it"
            if kafka.require_acks == "0"
            else "a broker that fails takes confirmed messages with it"
        )
        yield (
            f"acks={kafka.require_acks}: {lost}, and the idempotent producer is off, so a resend may change the order"
        )
    if kafka.share_groups:
        yield (
            "share_groups is experimental: handlers of competing queues have 29 s, deliveries count as attempts "
            f"({delivery_limit(settings.max_attempts)} at most), and a resend may be handled twice"
        )
    if kafka.group_protocol == "consumer":
        yield (
            "group_protocol=consumer: work of a dead process is taken over after the brokers' "
            "group.consumer.session.timeout.ms (45 s unless set), not after lease_s"
        )
