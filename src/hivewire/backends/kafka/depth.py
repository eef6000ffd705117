"""How much a queue holds, from what is committed and where partitions end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from hivewire.backend import Depth
from hivewire.backends.kafka.elsewhere import moved
from hivewire.backends.kafka.metadata import Committed, unpack
from hivewire.backends.kafka.tail import Place
from hivewire.rules.pool import Pool
from hivewire.rules.progress import History, Progress, decode, encode

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend


async def progress(backend: KafkaBackend, queue: str) -> Sequence[tuple[int, Committed]]:
    """End and progress of each partition: as committed and as members say that run what moved, or of a competing
    queue as its members said. What was deleted is not there, whoever has said what of it."""
    topic = backend.names.topic(queue)
    partitions = await backend.topics.ensure(queue)
    places = [(topic, number) for number in range(partitions)]
    spec = backend.topics.known(queue)
    if backend.features.leases_lanes(queue, competing=spec is not None and spec.mode == "competing"):
        firsts, ends = await _firsts_and_ends(backend, places)
        pool = (await backend.claims.log_of(queue)).pool(queue)
        return [(ends[place], _claimed(pool, place[1], firsts[place])) for place in places]
    committed = await backend.reader.committed(places)
    firsts, ends = await _firsts_and_ends(backend, places)
    away = await moved(backend, queue)
    found = []
    for place in places:
        at = unpack(*committed[place]) if place in committed else Committed(firsts[place], b"")
        if away is not None:
            at = with_moved(at, away, place[1])
        found.append((ends[place], left_of(at, firsts[place])))
    return found


async def _firsts_and_ends(
    backend: KafkaBackend, places: Sequence[Place]
) -> tuple[Mapping[Place, int], Mapping[Place, int]]:
    firsts, ends = await asyncio.gather(backend.admin.ends(places, first=True), backend.admin.ends(places))
    return firsts, ends


def left_of(at: Committed, first: int) -> Committed:
    """What was committed of a partition whose records before `first` are gone: nobody will ever finish them."""
    if first <= at.watermark:
        return at
    state = decode(at.state)
    history = [entry for entry in state.history if entry.at >= first]
    ahead = [offset for offset in state.ahead if offset >= first]
    failed = sum(entry.failures > 0 for entry in history)
    return Committed(
        first,
        encode(Progress(first, ahead, history, max(first, state.taken_to))),
        max(0, at.finished - (len(state.ahead) - len(ahead))),
        max(0, at.running - (state.running - sum(entry.running for entry in history))),
        sorted(at.due_at)[len(at.due_at) - min(failed, len(at.due_at)) :],
    )


def with_moved(at: Committed, pool: Pool, shard: int) -> Committed:
    """What was committed of a partition, with what its former owners still run, or have finished since."""
    low = at.watermark
    state = decode(at.state) if at.state else Progress(low, (), (), low)
    ended = {*range(low, pool.low(shard)), *(offset for offset in pool.ahead(shard) if offset >= low)}
    ended.difference_update(state.ahead)
    held = {
        offset
        for (number, offset), known in pool.known.items()
        if number == shard and offset >= low and known.holder is not None
    }
    held.difference_update(state.ahead)
    if not ended and not held:
        return at
    history = {entry.at: entry for entry in state.history if entry.at not in ended}
    running = at.running - sum(entry.running for entry in state.history if entry.at in ended)
    for offset in held:
        entry = history.get(offset, History(offset))
        running += not entry.running
        history[offset] = msgspec.structs.replace(entry, running=True)
    ahead = sorted({*state.ahead, *ended})
    known = Progress(low, ahead, [history[offset] for offset in sorted(history)], state.taken_to)
    return Committed(low, encode(known), at.finished + len(ended), max(0, running), at.due_at)


def _claimed(pool: Pool, shard: int, first: int) -> Committed:
    """What its members said of one partition. What was handed out counts as running."""
    low = max(first, pool.low(shard))
    ahead = [offset for offset in pool.ahead(shard) if offset >= low]
    here = [(offset, known) for (number, offset), known in pool.known.items() if number == shard and offset >= low]
    history = [
        History(offset, known.starts, known.failures, known.crashes, known.holder is not None)
        for offset, known in sorted(here, key=lambda one: one[0])
    ]
    running = sum(known.holder is not None for _, known in here)
    due_at = [known.due_at for _, known in here if known.holder is None and known.due_at]
    return Committed(low, encode(Progress(low, ahead, history, low)), len(ahead), running, due_at)


async def depth(backend: KafkaBackend, queue: str) -> Depth:
    if await backend.topics.look_up(queue) is None:
        return Depth()
    topic = backend.names.topic(queue)
    now = backend.now()
    held = running = scheduled = 0
    oldest: float | None = None
    for number, (end, at) in enumerate(await progress(backend, queue)):
        here = max(0, end - at.watermark - at.finished)
        held += here
        running += at.running
        scheduled += sum(due_at > now for due_at in at.due_at)
        if here:
            stored = await backend.reader.stored_at(topic, number, at.watermark)
            oldest = stored if oldest is None or (stored is not None and stored < oldest) else oldest
    waiting = await backend.delays.waiting(queue)
    later = ready = 0
    if waiting is not None:
        agenda = waiting.agenda
        later = sum(agenda.is_to_come(at, now) for at in agenda.known)
        ready = len(agenda.known) - later
    in_flight = min(running, held)
    scheduled = min(scheduled, held - in_flight)
    return Depth(
        ready=held - in_flight - scheduled + ready,
        in_flight=in_flight,
        scheduled=scheduled + later,
        dead=await backend.letters.count(queue),
        oldest_age_s=0.0 if oldest is None else max(0.0, now - oldest),
    )
