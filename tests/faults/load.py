"""Numbered messages under a load that goes on while a store is in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.testing.conformance.scenario import empty, number, serving, task
from hivewire.testing.conformance.waiting import until

KEYS = [f"k{n}" for n in range(8)]


class Load:
    """Sends numbered messages of several keys until it is stopped. Of each key so many are under way `at_once`; with
    more than one, some of them by the ways that a plain message does not take."""

    def __init__(self, protocol: Engine, agent: str, at_once: int = 1, pause_s: float = 0.001) -> None:
        self._protocol = protocol
        self._pause_s = pause_s
        self._at_once = at_once
        self._agent = agent
        self._stopping = False
        self.confirmed: dict[str, list[int]] = {key: [] for key in KEYS}

    async def _send(self, key: str) -> None:
        free, n = asyncio.Semaphore(self._at_once), 0
        async with asyncio.TaskGroup() as group:
            while not self._stopping:
                await free.acquire()
                sending = group.create_task(self._send_one(key, n))
                sending.add_done_callback(lambda _: free.release())
                n += 1
                await asyncio.sleep(self._pause_s)

    async def _send_one(self, key: str, n: int) -> None:
        message, once = task(self._agent, n, key=key), None
        if self._at_once > 1 and n % 5 == 0:
            message = message.replace(ttl_s=3600)
        elif self._at_once > 1 and n % 7 == 0:
            once = f"{key}-{n}"
        await self._protocol.send(message, idempotency_key=once, timeout_s=20)
        self.confirmed[key].append(n)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for key in KEYS:
                group.create_task(self._send(key))
            try:
                yield
            finally:
                self._stopping = True

    @property
    def total(self) -> int:
        return sum(map(len, self.confirmed.values()))


class Seen:
    """What a handler got, by key, in its order."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = {key: [] for key in KEYS}

    async def __call__(self, delivery: Delivery) -> None:
        await asyncio.sleep(0.001)
        self.numbers[str(delivery.message.key)].append(number(delivery))

    @property
    def total(self) -> int:
        return sum(map(len, self.numbers.values()))

    def check(self, load: Load) -> None:
        """All that was confirmed was handled, each key's first times in the order sent."""
        assert self.lost(load) == []

    def lost(self, load: Load) -> list[tuple[str, int]]:
        """What was confirmed and never handled. Each key's first times are in the order sent."""
        missing = []
        for key, confirmed in load.confirmed.items():
            first = list(dict.fromkeys(self.numbers[key]))
            assert first == sorted(first), key
            missing += [(key, n) for n in confirmed if n not in set(first)]
        return missing


async def survive(
    sender: Engine, member: Engine, trouble: Callable[[], Awaitable[None]], times: int
) -> tuple[Load, Seen]:
    """Trouble strikes so often while messages flow; all that was confirmed is handled, and nothing is left."""
    load, seen = Load(sender, "load"), Seen()
    async with serving(member, "load", seen, concurrency=4):
        async with load.running():
            for _ in range(times):
                await _flowing(load, seen, 15)
                await trouble()
            await _flowing(load, seen, 5)
        await empty(sender, "load", within_s=30)
    seen.check(load)
    return load, seen


async def _flowing(load: Load, seen: Seen, within_s: float) -> None:
    sent, handled = load.total, seen.total
    await until(lambda: load.total > sent + 100, "messages are sent")
    await until(lambda: seen.total > handled + 50, "messages are handled", within_s)
