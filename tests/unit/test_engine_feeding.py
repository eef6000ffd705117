"""A consumer that is told of messages rests where that saves questions to the store; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hivewire.engine.feeding import Feeding
from hivewire.record import Fetched, Record
from hivewire.testing.virtual_time import virtual

RATE, TRIP_S = 5_000, 0.0001


class Store:
    """Stands for an inbox on a store that tells: messages come by the clock, a question takes a moment."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.told = self.questions = 0
        self.core = self.outcomes = None
        self.queue = "q"
        lanes = SimpleNamespace(ready=(), active=0)
        self.held = SimpleNamespace(consumer=SimpleNamespace(tells=True), store_lanes=False, lanes=lanes, taker=None)
        slots = SimpleNamespace(free=8, are_kept=False)
        self.feeding = Feeding(cast(Any, self), cast(Any, slots), cast(Any, None))
        self.feeding.begin(self.loop.create_future())

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        self.questions += 1
        self.loop.call_later(TRIP_S, self._answer)
        return (), True

    def _answer(self) -> None:
        come = int((self.loop.time() - self.began) * RATE) - self.told
        if come:
            self.told += come
            self.feeding.came([Fetched(0, at, 1, Record(str(at), "k", b""), 0.0) for at in range(come)], None)
        else:
            self.loop.call_later(TRIP_S / 4, self._answer)

    def take_in(self, batch: Sequence[Fetched]) -> None:
        pass

    def ask_no_more(self) -> None:
        pass


@virtual
async def test_frequent_questions_for_little_are_put_together() -> None:
    store = Store()
    await asyncio.sleep(0.01)
    assert 0 <= store.questions - store.told <= 1  # one for each: nothing is known of the traffic yet
    await asyncio.sleep(2.0)
    asked, told = store.questions, store.told
    await asyncio.sleep(10.0)
    assert store.told - told >= 0.999 * 10 * RATE
    assert store.questions - asked < 0.25 * (store.told - told)
    store.feeding.stop()


@virtual
async def test_who_is_stopped_in_a_rest_asks_no_more() -> None:
    store = Store()
    await asyncio.sleep(2.0)
    asked = store.questions
    for _ in range(20):  # a rest is longer than a question
        await asyncio.sleep(TRIP_S)
        if not store.feeding._is_asked:
            break
    else:
        raise AssertionError("it does not rest")
    store.feeding.stop()
    asked = store.questions
    await asyncio.sleep(1.0)
    assert store.questions == asked
