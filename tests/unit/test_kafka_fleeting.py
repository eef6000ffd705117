"""A client that is there while somebody needs it."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.errors import Closed
from hivewire.testing.conformance.waiting import until

pytest.importorskip("confluent_kafka")

from hivewire.backends.kafka import fleeting as module
from hivewire.backends.kafka.fleeting import Fleeting


class Clients:
    def __init__(self) -> None:
        self.made = self.ended = 0
        self.fleeting: Fleeting[int] = Fleeting(self._make, self._end)
        self.fleeting.is_open = True

    def _make(self) -> int:
        self.made += 1
        return self.made

    async def _end(self, client: int) -> None:
        await asyncio.sleep(0)
        self.ended += 1


async def test_one_client_serves_all_who_use_it_at_once_and_ends_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    clients = Clients()
    with clients.fleeting.kept():
        with clients.fleeting.kept():
            assert clients.fleeting.client == 1
        await asyncio.sleep(0.05)
        assert not clients.ended, "it is still kept"
    await until(lambda: clients.ended == 1, "the client ends", 5)
    with clients.fleeting.kept():
        assert clients.fleeting.client == 2
    await clients.fleeting.close()


async def test_who_looks_again_soon_gets_the_same_client() -> None:
    clients = Clients()
    for _ in range(3):
        with clients.fleeting.kept():
            assert clients.fleeting.client == 1
    await clients.fleeting.close()
    assert (clients.made, clients.ended) == (1, 1)


async def test_after_the_end_nothing_is_made() -> None:
    clients = Clients()
    await clients.fleeting.close()
    with pytest.raises(Closed), clients.fleeting.kept():
        pass
    assert not clients.made
