"""Who owns how many shards, in real processes under a load that leaves no shard at rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hivewire.backends.redis import RedisBackend
from hivewire.testing.conformance.journal import first_seen, overlapping
from hivewire.testing.conformance.scenario import drained, task
from hivewire.testing.conformance.waiting import eventually, until_true
from hivewire.testing.conformance.workers import ProcessWorker
from tests.conformance.backends import RedisFabric

AGENT = "fair"
KEYS = [f"k{n}" for n in range(96)]
LEASE_S = 3.0
"""So long that a machine with other work does not let it run out."""


async def _worker(redis: RedisFabric) -> ProcessWorker:
    return await redis.process(AGENT, concurrency=48, settings={"lease_s": LEASE_S})


async def shares(redis: RedisFabric) -> list[int]:
    """How many shards each owner has, read from the server."""
    backend = redis.backend
    assert isinstance(backend, RedisBackend)
    flat = await backend.link.call("HGETALL", f"hivewire:{{{AGENT}}}:o")
    owners = [flat[at + 1] for at in range(0, len(flat), 2) if flat[at][:1] == b"o" and flat[at + 1]]
    return sorted(Counter(owners).values())


@asynccontextmanager
async def load(redis: RedisFabric, sleep_s: float) -> AsyncIterator[list[int]]:
    """Every key always has something to do. Gives the count of numbers sent a key."""
    sent = [0]
    stopping = False

    async def feed() -> None:
        while not stopping:
            depth = await redis.protocol.depth(AGENT)
            if depth.ready + depth.in_flight < 6 * len(KEYS):
                batch = [task(AGENT, sent[0], ["sleep", sleep_s], key=key) for key in KEYS]
                await redis.protocol.send_many(batch)
                sent[0] += 1
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        try:
            yield sent
        finally:
            stopping = True


def twice(redis: RedisFabric) -> list[str]:
    """What was started more than once, with all that happened to it."""
    starts = Counter((entry.key, entry.n) for entry in redis.journal.starts(AGENT))
    return [
        f"{entry.event} {entry.key}:{entry.n} attempt {entry.attempt} on {entry.worker} at {entry.at:.3f} {entry.note}"
        for entry in redis.journal.entries("start", "end", agent=AGENT)
        if starts[(entry.key, entry.n)] > 1
    ]


async def check(redis: RedisFabric, sent: int, dead: list[str]) -> None:
    await drained(redis.protocol, AGENT, within_s=60)
    starts = redis.journal.starts(AGENT)
    assert first_seen(starts) == {key: list(range(sent)) for key in KEYS}
    assert overlapping(redis.journal.entries("start", "end", agent=AGENT), dead=dead) == []


async def test_a_busy_shard_moves_to_a_member_that_joins(redis: RedisFabric) -> None:
    """Three members of 8 shards hold 2 to 3 each within 5 s of a join or a leave, within the lease and 5 s of a
    kill -9. Nothing runs twice but what the killed one had; every key keeps its order."""
    workers = [await _worker(redis)]
    async with load(redis, 0.05) as sent:
        await eventually(lambda: shares(redis), [8], 5)
        workers.append(await _worker(redis))
        await eventually(lambda: shares(redis), [4, 4], 5)
        workers.append(await _worker(redis))
        await eventually(lambda: shares(redis), [2, 3, 3], 5)
        leaver = workers.pop(0)
        leaver.terminate()
        await eventually(lambda: shares(redis), [4, 4], 5)
        assert await leaver.ended() == 0
        assert twice(redis) == []
        workers.append(await _worker(redis))
        await eventually(lambda: shares(redis), [2, 3, 3], 5)
        victim = workers.pop(0)
        victim.kill()
        await eventually(lambda: shares(redis), [4, 4], LEASE_S + 5)
    await check(redis, sent[0], [victim.name])


async def test_a_handler_that_lasts_is_not_doubled_by_a_move(redis: RedisFabric) -> None:
    """Shards whose handlers last longer than a move waits stay until these end; the others go."""
    await _worker(redis)
    await redis.protocol.send_many([task(AGENT, 0, ["sleep", 9.0], key=f"long{n}") for n in range(40)])
    await until_true(lambda: _running(redis, 40), "all run", 10)
    await _worker(redis)
    await redis.protocol.send_many([task(AGENT, 1, key=f"long{n}") for n in range(40)])
    await eventually(lambda: shares(redis), [4, 4], 25)
    await drained(redis.protocol, AGENT, within_s=30)
    starts = redis.journal.starts(AGENT)
    assert Counter((entry.key, entry.n) for entry in starts) == {(f"long{n}", m): 1 for n in range(40) for m in (0, 1)}
    assert overlapping(redis.journal.entries("start", "end", agent=AGENT)) == []
    assert {entry.note for entry in redis.journal.ends(AGENT)} == {"done"}


async def _running(redis: RedisFabric, wanted: int) -> bool:
    return len(redis.journal.starts(AGENT)) >= wanted
