"""What is told of outcomes whose shard goes while they wait to be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from unittest.mock import AsyncMock

import pytest

from hivewire.backend import Consumer, Saved
from hivewire.engine.shards import Shards
from hivewire.record import Fetched, Record
from hivewire.rules.progress import Progress, encode

NOTHING_YET = encode(Progress(0, (), (), 0))


class Store:
    """Holds back each commit until it may be stored."""

    def __init__(self) -> None:
        self.begun, self.may_store = asyncio.Event(), asyncio.Event()
        self.asked: list[Mapping[int, Saved]] = []
        self.consumer = AsyncMock(spec=Consumer)
        self.consumer.save.side_effect = self._save

    async def _save(self, states: Mapping[int, Saved]) -> Sequence[int]:
        self.asked.append(states)
        self.begun.set()
        await self.may_store.wait()
        return ()


def taken(shards: Shards, shard: int, token: int) -> Fetched:
    fetched = Fetched(shard, 0, token, Record(id=f"{shard}", key="k", body=b""), 0.0)
    assert shards.accept([fetched]) == ([fetched], [])
    return fetched


@pytest.mark.parametrize("comes_back", [False, True], ids=["gone", "gone and owned anew"])
async def test_what_waits_for_its_turn_while_its_shard_goes_is_refused(comes_back: bool) -> None:
    """A commit takes long, another waits behind it. What it would have stored is not there, and must not pass for
    stored: neither with the shard, nor under its next token, of which nothing is known."""
    store, shards = Store(), Shards(per_record_ack=False)
    for number in range(2):
        shards.gained(number, 10 + number, NOTHING_YET)
    first, second = taken(shards, 0, 10), taken(shards, 1, 11)
    slow = asyncio.create_task(shards.settle(store.consumer, [first], (), 0.0))
    await store.begun.wait()
    waiting = asyncio.create_task(shards.settle(store.consumer, [second], (), 0.0))
    await asyncio.sleep(0)
    shards.lost([1])
    if comes_back:
        shards.gained(1, 99, NOTHING_YET)
    store.may_store.set()
    assert await slow == []
    assert await waiting == [second]
    assert [set(states) for states in store.asked] == [{0}], "nothing was stored under another's name"
