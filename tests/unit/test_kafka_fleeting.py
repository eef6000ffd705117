"""A client that is there while somebody needs it."""

from __future__ import annotations

import asyncio
import threading

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


async def test_a_close_waits_for_a_thread_whose_asker_was_cancelled() -> None:
    """Else the client would live on in the thread, with its own threads and connections, after the close."""
    clients = Clients()
    begun, go_on = threading.Event(), threading.Event()

    def look(client: int) -> int:
        begun.set()
        go_on.wait(60)
        return client

    asking = asyncio.create_task(clients.fleeting.ask(look))
    await asyncio.to_thread(begun.wait, 60)
    asking.cancel()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
    closing = asyncio.create_task(clients.fleeting.close())
    await asyncio.sleep(0)
    assert (closing.done(), clients.ended) == (False, 0)
    go_on.set()
    await closing
    assert (clients.made, clients.ended) == (1, 1)


async def test_what_a_thread_found_is_the_answer_and_the_client_ends_after_it() -> None:
    clients = Clients()
    assert await clients.fleeting.ask(lambda client, more: (client, more), "more") == (1, "more")
    await clients.fleeting.close()
    assert clients.ended == 1
    with pytest.raises(Closed):
        await clients.fleeting.ask(lambda client: client)
