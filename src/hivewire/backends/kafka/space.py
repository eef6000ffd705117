"""Space of what is finished is given back to the brokers: by who owns the partition, below its watermark. And that of
a queue that nobody needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.tail import Place

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend


class Space:
    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._deleted: dict[Place, int] = {}

    async def give_back(self, older_than_s: float) -> None:
        """Of what was stored so long ago. Newer records are kept to recognise duplicates after a change of owner."""
        backend = self._backend
        await backend.topics.notice_new()
        settings = backend.settings
        window_s = max(older_than_s, settings.dedup_window_s, settings.idempotency_window_s)
        before: dict[Place, int] = {}
        for consumer in tuple(backend.consumers):
            for place, watermark in consumer.watermarks().items():
                old = await backend.admin.since(place, backend.now() - window_s)
                if min(watermark, old) != self._deleted.get(place, 0):
                    before[place] = min(watermark, old)
        if before:
            await backend.admin.delete_before(before)
            self._deleted.update(before)
            for consumer in tuple(backend.consumers):
                if isinstance(consumer, KafkaConsumer):
                    await consumer.deleted(
                        {place[1]: before[place] for place in consumer.watermarks().keys() & before.keys()}
                    )

    async def empty(self, queue: str) -> None:
        """All that is in a queue. The topic stays, for whoever has the name later."""
        backend = self._backend
        await backend.letters.purge(queue, None, None)
        await backend.delays.drop(queue)
        topic, shards = backend.names.topic(queue), await backend.topics.ensure(queue)
        ends = await backend.admin.ends([(topic, shard) for shard in range(shards)])
        await backend.admin.delete_before(ends)
        spec = backend.topics.known(queue)
        if backend.features.leases_lanes(queue, competing=spec is not None and spec.mode == "competing"):
            await backend.claims.emptied(queue, {shard: end for (_, shard), end in ends.items()})
