"""Looking at what was read before: stretches of partitions, and how far the group is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from hivewire.backends.kafka.clients import patiently
from hivewire.backends.kafka.fleeting import Fleeting
from hivewire.backends.kafka.packing import KafkaMessage, stored_at
from hivewire.backends.kafka.tail import Place, Tail
from hivewire.errors import ConnectionLost

_COMMITTED_S: Final = 2.0
_STRETCH_S: Final = 30.0


class Reader:
    """A client of its own, while there is something to look at: the group's has its partitions at another place."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.clients: Fleeting[Tail] = Fleeting(lambda: Tail(options, "reader"), Tail.close)
        self._locks: dict[Place, asyncio.Lock] = {}
        self._ages: dict[Place, tuple[int, float]] = {}

    async def read(
        self, topic: str, partition: int, first: int, last: int, wanted: Collection[int]
    ) -> list[KafkaMessage]:
        """The messages at these offsets, all within `first` to `last`; those that are gone are left out."""
        async with self._locks.setdefault((topic, partition), asyncio.Lock()):
            found: list[KafkaMessage] = []
            done = asyncio.get_running_loop().create_future()

            def sink(messages: Sequence[KafkaMessage], reached: int) -> None:
                found.extend([message for message in messages if message.offset() in wanted])
                if reached > last and not done.done():
                    done.set_result(None)

            with self.clients.kept():
                tail = self.clients.client
                try:
                    await tail.follow(topic, partition, first, sink)
                    async with asyncio.timeout(_STRETCH_S):
                        await done
                except TimeoutError:
                    raise ConnectionLost(f"read {topic} again: nothing came within {_STRETCH_S:g} s") from None
                finally:
                    tail.unfollow(topic, partition)
            return found

    async def stored_at(self, topic: str, partition: int, offset: int) -> float | None:
        """When the first record from this offset on was stored."""
        known = self._ages.get((topic, partition))
        if known is not None and known[0] == offset:
            return known[1]
        messages = await self.read(topic, partition, offset, offset, {offset})
        if not messages:
            return None
        self._ages[topic, partition] = (offset, stored_at(messages[0]))
        return self._ages[topic, partition][1]

    async def committed(self, places: Sequence[Place]) -> dict[Place, tuple[int, str]]:
        """How far the group is, with the metadata; partitions without a commit are left out.

        Asked by a consumer: the administrator of librdkafka 2.16 crashes when the coordinator of the group has
        just moved or is being loaded.
        """
        found: dict[Place, tuple[int, str]] = {}

        def ask(client: Consumer) -> None:
            asked = [TopicPartition(topic, number) for topic, number in places]
            for at in client.committed(asked, timeout=_COMMITTED_S):
                if at.error is not None:
                    raise KafkaException(at.error)
                if at.offset >= 0:
                    found[at.topic, at.partition] = (at.offset, at.metadata or "")

        with self.clients.kept():
            await patiently(lambda: self.clients.client.command(ask, "look at commits"))
        return found
