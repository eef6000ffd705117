"""Kafka."""

from hivewire.backends.kafka.backend import KafkaBackend as KafkaBackend

__all__ = ["KafkaBackend"]
