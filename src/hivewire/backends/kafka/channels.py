"""Volatile broadcasts: one topic, a fixed partition for each channel, read by whoever listens from then on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

from hivewire.backends.kafka.mailbox import Shared
from hivewire.backends.kafka.sending import Item

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

_PARTITIONS: Final = 4
_CHANNEL: Final = "channel"
_MOST: Final = 10_000
_KEPT: Final = {"cleanup.policy": "delete", "retention.ms": "3600000"}


class Channels:
    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._heard = Shared(backend, _CHANNEL)

    async def publish(self, channel: str, body: bytes) -> None:
        topic, partition = await self._place(channel)
        await self._backend.store_one(Item(topic, None, 0, partition, None, body, [(_CHANNEL, channel)]))

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        if channel not in self._heard.news:
            await self._heard.listen(*await self._place(channel), channel)
        if wait_s > 0:
            await self._heard.wait(channel, wait_s)
        return [message.value() or b"" for message in self._heard.take(channel, _MOST)]

    async def _place(self, channel: str) -> tuple[str, int]:
        topic = self._backend.names.volatile
        return topic, crc32(channel.encode()) % await self._backend.topics.ensure_own(topic, _PARTITIONS, _KEPT)
