"""Delayed messages of a queue, without a broker."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

from hivewire.backend import Entry
from hivewire.backends.kafka.delays import Delays, Waiting
from hivewire.testing.conformance.waiting import until


async def test_nothing_is_looked_at_before_something_was_delayed() -> None:
    versions: dict[str, int] = {}
    looked: list[str] = []
    backend = Mock(now=lambda: 0.0)
    backend.catalogue.known = lambda key: Entry(b"", versions.get(key, 0))
    delays = Delays(backend)

    async def waiting(queue: str) -> Waiting:
        looked.append(queue)
        return Waiting()

    delays.waiting = waiting  # type: ignore[method-assign]
    movers = [asyncio.create_task(delays.keep_moving("one", {0})) for _ in range(2)]  # of two consumers
    await asyncio.sleep(0)
    delays.begun("other")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task(), *movers}
    assert not looked
    versions["delayed/one"] = 1
    delays.begun("one")
    await until(lambda: looked == ["one", "one"], "both look")
    for mover in movers:
        mover.cancel()
    await asyncio.gather(*movers, return_exceptions=True)
