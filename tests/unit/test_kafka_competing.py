"""What a member of a competing queue says of messages that it was granted and never began; without a broker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hivewire.backend import Fetched, Record
from hivewire.backends.kafka.competing import CompetingConsumer
from hivewire.backends.kafka.feed import Fresh
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Heard, Offer, Take, Word

AT: At = (0, 5)


class Seat:
    """In a log that stores each word. What was `sent` before is stored, and heard, with the next one."""

    def __init__(self, listener: Any) -> None:
        self.name, self.token, self.is_in, self.has_lapsed = "me", 1, True, False
        self.pool = Pool(100, 60.0, 60.0)
        self.pool.apply(Word("me", 6.0), 0, 1.0)
        self.sent: list[Word] = []
        self._listener = listener

    async def say(self, word: Word) -> Heard:
        while self.sent:
            await self.say(self.sent.pop(0))
        heard = self.pool.apply(word, 1, 2.0)
        self._listener(word, heard, True)
        return heard

    async def join(self) -> None:
        self.name, self.token, self.is_in = "again", 2, True
        await self.say(Word("again", 6.0))

    def end(self) -> None:
        self.is_in = False

    async def leave(self, word: Word) -> None:
        await self.say(word)


class Feed:
    """One message, which was read."""

    is_anew = False
    gaps = ()

    def take(self, at: At) -> Fresh:
        return Fresh(at, Record("one", "key", b""), 1.0)

    async def follow(self) -> None:
        return None

    def close(self, ear: object) -> bool:
        return False


class Owner:
    async def gained(self, shard: int, token: int, saved: bytes) -> None:
        return None

    def lost(self, shards: object) -> None:
        return None


@pytest.fixture
def consumer() -> Any:
    backend: Any = SimpleNamespace(
        settings=SimpleNamespace(lease_s=6.0),
        names=SimpleNamespace(topic=lambda queue: queue),
        check_usable=lambda: None,
        discard=lambda consumer: None,
        now=lambda: 2.0,
    )
    made: Any = CompetingConsumer(backend, "pool", Owner())  # type: ignore[arg-type]  # what it needs of one
    made.seat, made._feed, made._token = Seat(made._heard), Feed(), 1
    return made


def take() -> Word:
    return Word("me", take=Take(1, 1, [Offer(*AT)]))


async def test_what_was_granted_and_not_handed_out_was_not_started(consumer: Any) -> None:
    await consumer.seat.say(take())
    assert consumer.pool.known[AT].starts == 1
    await consumer.close()
    assert (consumer.pool.known[AT].starts, consumer.pool.members) == (0, {})


async def test_what_was_handed_out_was_started(consumer: Any) -> None:
    await consumer.seat.say(take())
    (fetched,) = await consumer.fetch(1, 1.0, starting=1)
    assert (type(fetched), fetched.starts, fetched.marked) == (Fetched, 1, True)
    await consumer.close()
    assert (consumer.pool.known[AT].starts, consumer.pool.members) == (1, {})


async def test_who_is_cancelled_while_it_closes_does_not_live_on(consumer: Any) -> None:
    """Its seat would say so for ever, and hold what was granted to it."""
    consumer._asking = consumer._spawn(asyncio.Event().wait(), "an answer that does not come")
    closing = asyncio.create_task(consumer.close())
    await asyncio.sleep(0)
    assert consumer._closed
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (consumer.seat.is_in, consumer._tasks) == (False, set())


async def test_what_is_granted_to_a_member_whose_lease_has_ended_was_not_started(consumer: Any) -> None:
    consumer.seat.sent = [take()]
    await consumer._begin_again()
    known = consumer.pool.known[AT]
    assert (known.starts, known.holder, known.suspect) == (0, None, False)
    assert list(consumer.pool.members) == ["again"]
    await consumer.seat.say(Word("again", take=Take(1, 1, [Offer(*AT)])))
    (fetched,) = await consumer.fetch(1, 1.0, starting=1)
    assert fetched.starts == 1
    await consumer.stop()
