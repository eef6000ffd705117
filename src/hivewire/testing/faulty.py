"""A memory store that misbehaves by a seed: requests that fail, answers that are lost, answers that come late."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

from hivewire.backend import Append, Consumer, Duplicate, Member, Ownership, Record, Room, Unfinished
from hivewire.backends.memory import MemoryBackend
from hivewire.errors import ConnectionLost
from hivewire.record import Fetched
from hivewire.settings import Settings


class Trouble:
    """Decides, by a seed, what goes wrong. `rate` of all requests do, half of them before the store has done it
    and half after; as many answers are late. `struck` counts; `heal` ends it."""

    def __init__(self, seed: int, rate: float, most_delay_s: float = 0.05) -> None:
        self._chance = Random(seed)
        self.rate = rate
        self._most_delay_s = most_delay_s
        self.struck = 0

    def heal(self) -> None:
        self.rate = 0.0

    async def at(self, place: str) -> None:
        roll = self._chance.random()
        if roll < self.rate / 2:
            self.struck += 1
            raise ConnectionLost(f"{place}: lost by the test's seed")
        if roll < self.rate:
            await asyncio.sleep(self._chance.random() * self._most_delay_s)


class FaultyMemory(MemoryBackend):
    """The memory backend behind a bad line."""

    def __init__(self, settings: Settings, trouble: Trouble) -> None:
        super().__init__(settings)
        self.trouble = trouble

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        await self.trouble.at("append")
        answer = await super().append(batch)
        await self.trouble.at("append, stored")
        return answer

    def append_now(self, queue: str, record: Record, room: Room) -> bool:
        return False

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        return _FaultyConsumer(await super().consume(queue, member, owner), self.trouble)


class _FaultyConsumer(Consumer):
    def __init__(self, inner: Consumer, trouble: Trouble) -> None:
        self._inner = inner
        self._trouble = trouble

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        await self._trouble.at("fetch")  # what was taken is never lost with an answer: drivers give it again
        return await self._inner.fetch(limit, wait_s, lanes=lanes, run=run, starting=starting)

    def holds(self, fetched: Fetched) -> bool:
        return self._inner.holds(fetched)

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        await self._trouble.at("start")
        return await self._inner.start(batch)

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        await self._trouble.at("settle")
        return await self._inner.settle(done, rest)

    async def close(self) -> None:
        await self._inner.close()
