"""kill -9 of senders, workers and the server, and frozen workers, at any point: every message is accounted for."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from hivewire.backend import Mode
from hivewire.testing.conformance.journal import Entry, first_seen, overlapping
from hivewire.testing.conformance.scenario import counts, empty
from hivewire.testing.conformance.waiting import count, until, until_true
from hivewire.testing.conformance.workers import ProcessWorker
from tests.conformance.backends import RedisFabric

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

AGENT = "storm"


class Storm:
    """What was done to whom, and when."""

    def __init__(self, redis: RedisFabric, seed: int) -> None:
        self.redis = redis
        self.chance = random.Random(seed)
        self.killed: list[str] = []
        self.frozen: list[str] = []
        self.outages: list[tuple[float, float]] = []

    async def traffic(self) -> None:
        """Until some more has happened, or the queue is empty: a worker whose sender is dead runs dry."""
        goal = len(self.redis.journal.entries()) + self.chance.randrange(5, 200)

        async def enough() -> bool:
            return len(self.redis.journal.entries()) >= goal or (await self.redis.protocol.depth(AGENT)).ready == 0

        await until_true(enough, "traffic", 30)

    async def kill(self, victim: ProcessWorker) -> None:
        victim.kill()
        await victim.ended()
        self.killed.append(victim.name)

    async def kill_the_server(self) -> None:
        began = self.redis.now()
        self.redis.server.kill()
        await asyncio.sleep(self.chance.uniform(0, 0.3))  # what is tested is that time passes
        self.redis.server.start()
        self.outages.append((began, self.redis.now()))

    async def freeze(self, victim: ProcessWorker) -> None:
        """For longer than its lease; then it goes on."""
        victim.freeze()
        self.frozen.append(victim.name)
        await asyncio.sleep(self.redis.lease_s + self.chance.uniform(0.1, 0.6))
        victim.thaw()

    def unexplained(self, ends: list[Entry]) -> list[str]:
        """Messages finished more than once although nobody died or froze who had finished them before, and the
        server was there."""
        done: dict[str, list[Entry]] = defaultdict(list)
        for entry in ends:
            if entry.note == "done":
                done[entry.id].append(entry)
        lease_s = self.redis.lease_s
        return [
            f"{entry.key}:{entry.n} on {entry.worker}"
            for entries in done.values()
            for entry in entries[:-1]
            if entry.worker not in self.killed + self.frozen
            and not any(began - lease_s < entry.at < ended + 2 * lease_s + 2 for began, ended in self.outages)
        ]


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_a_storm_of_kills_on_both_ends_and_of_the_server(redis: RedisFabric, mode: Mode) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    storm = Storm(redis, seed=count(5, 6))
    settings = {"max_attempts": 1000}
    for turn in range(count(6, 100)):
        sender = await redis.process(AGENT, program="send", count=100_000, keys=4)
        worker = await redis.process(AGENT, concurrency=4, settings=settings)
        # Who finds no server when he begins ends with an error: his supervisor starts another.
        await until(lambda worker=worker: redis.journal.entries("start", worker=worker.name), "it works")  # type: ignore[misc]
        await storm.traffic()
        if turn % 3 == 1:
            await storm.kill_the_server()
            await storm.traffic()
        elif turn % 3 == 2:
            await storm.freeze(worker)
            await storm.traffic()
        for victim in storm.chance.sample([sender, worker], 2):
            await storm.traffic()
            await storm.kill(victim)
    await redis.process(AGENT, concurrency=8, settings=settings)
    await empty(redis.protocol, AGENT, within_s=120)
    promised = {entry.id for entry in redis.journal.entries("sent")}
    ends = redis.journal.ends(AGENT)
    assert promised
    assert promised <= {entry.id for entry in ends if entry.note == "done"}
    assert counts(await redis.protocol.depth(AGENT)) == (0, 0, 0, 0)
    assert (await redis.protocol.depth(AGENT)).lost == 0
    assert storm.unexplained(ends) == []
    if mode == "ordered":
        for key, numbers in first_seen(redis.journal.starts(AGENT)).items():
            assert numbers == sorted(numbers), key
        gone = storm.killed + storm.frozen
        assert overlapping(redis.journal.entries("start", "end", agent=AGENT), dead=gone) == []
