"""How much a queue holds, from what is committed and where partitions end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hivewire.backend import Depth
from hivewire.backends.kafka.metadata import Committed, unpack

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend


async def progress(backend: KafkaBackend, topic: str, partitions: int) -> Sequence[tuple[int, Committed]]:
    """End and committed progress of each partition."""
    places = [(topic, number) for number in range(partitions)]
    committed = await backend.reader.committed(places)
    ends = await backend.admin.ends(places)
    fresh = [place for place in places if place not in committed]
    firsts = await backend.admin.ends(fresh, first=True)
    found = []
    for place in places:
        if place in committed:
            found.append((ends[place], unpack(*committed[place])))
        else:
            found.append((ends[place], Committed(firsts[place], b"")))
    return found


async def depth(backend: KafkaBackend, queue: str) -> Depth:
    if await backend.topics.look_up(queue) is None:
        return Depth()
    topic = backend.names.topic(queue)
    partitions = await backend.topics.ensure(queue)
    now = backend.now()
    held = running = scheduled = 0
    oldest: float | None = None
    for number, (end, at) in enumerate(await progress(backend, topic, partitions)):
        here = max(0, end - at.watermark - at.finished)
        held += here
        running += at.running
        scheduled += sum(due_at > now for due_at in at.due_at)
        if here:
            stored = await backend.stored_at(topic, number, at.watermark)
            oldest = stored if oldest is None or (stored is not None and stored < oldest) else oldest
    waiting = await backend.delays.waiting(queue)
    later = ready = 0
    if waiting is not None:
        later = sum(known.due_at > now for known in waiting.known.values())
        ready = len(waiting.known) - later
    in_flight = min(running, held)
    scheduled = min(scheduled, held - in_flight)
    return Depth(
        ready=held - in_flight - scheduled + ready,
        in_flight=in_flight,
        scheduled=scheduled + later,
        dead=await backend.letters.count(queue),
        oldest_age_s=0.0 if oldest is None else max(0.0, now - oldest),
    )
