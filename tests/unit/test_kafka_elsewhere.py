"""What a member says of handlers that outlive its partitions when an answer is lost; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hivewire.backend import Fetched, Record
from hivewire.backends.kafka.elsewhere import MovedWork
from hivewire.backends.kafka.partition import Taken
from hivewire.errors import BackendError, ConnectionLost
from hivewire.rules.pool import Pool
from hivewire.rules.progress import decode
from hivewire.rules.words import Heard, Kept, Offer, Take, Word
from hivewire.testing.conformance.waiting import until


class Seat:
    """In a log that stores each word, and loses the answers while `is_deaf`."""

    def __init__(self) -> None:
        self.name, self.is_in, self.has_lapsed, self.is_deaf = "me", True, False, False
        self.pool = Pool(100, 60.0, 60.0)
        self.log = SimpleNamespace(tidy=lambda: None)
        self.pool.apply(Word("me", 6.0), 0, 1.0)
        self.takes_back, self.goes_on = asyncio.Event(), asyncio.Event()
        self.goes_on.set()
        self.listener: Callable[[Word, Heard, bool], None] | None = None

    async def say(self, word: Word) -> Heard:
        is_deaf, heard = self.is_deaf, self.pool.apply(word, 1, 2.0)
        if self.listener is not None:
            self.listener(word, heard, True)
        if word.back:
            self.takes_back.set()
            await self.goes_on.wait()
        if is_deaf:
            raise ConnectionLost("the answer was lost")
        return heard

    async def look_after_others(self) -> None:
        return None

    def end(self) -> None:
        self.is_in = False

    async def leave(self) -> None:
        return None


class Catalogue:
    async def note(self, key: str) -> None:
        return None


def made() -> tuple[MovedWork, Seat]:
    backend: Any = SimpleNamespace(
        settings=SimpleNamespace(lease_s=6.0),
        names=SimpleNamespace(topic=lambda queue: queue),
        catalogue=Catalogue(),
        now=lambda: 1.0,
    )
    owner: Any = SimpleNamespace(lost_held=lambda: None)
    elsewhere, seat = MovedWork(backend, "q", owner), Seat()
    seat.listener = elsewhere._heard
    elsewhere._seat = seat  # type: ignore[assignment]  # the same, without a broker
    return elsewhere, seat


def fetched(at: int) -> Fetched:
    return Fetched(0, at, 1, Record(f"m{at}", "k", b""), 1.0, starts=1)


async def test_what_was_perhaps_said_to_run_here_is_taken_back() -> None:
    """The handlers are waited for then; a new owner of the partition must not wait for them, too, for ever."""
    elsewhere, seat = made()
    seat.is_deaf = True
    with pytest.raises(ConnectionLost):
        await elsewhere.hold([fetched(4), fetched(5)])
    assert seat.pool.is_held((0, 4), "me")
    seat.is_deaf = False
    await until(lambda: not seat.pool.is_taken((0, 4)) and not seat.pool.is_taken((0, 5)), "it is taken back")
    await elsewhere.close()


async def test_of_a_topic_that_was_made_anew_nothing_was_finished_elsewhere() -> None:
    elsewhere, seat = made()
    backend: Any = elsewhere._backend
    told: list[str] = []

    async def exists(key: str) -> Any:
        return SimpleNamespace(version=1)

    async def made_anew(queue: str) -> None:
        told.append(queue)
        seat.pool.apply(Word("", topic="second"), 3, 2.0)

    async def catch_up() -> None:
        return None

    backend.catalogue.get, backend.claims = exists, SimpleNamespace(made_anew=made_anew)
    seat.log.catch_up = catch_up
    seat.pool.apply(Word("", topic="first"), 0, 1.0)
    await elsewhere.hold([fetched(1)])
    await elsewhere.settle([fetched(1)], ())
    await elsewhere.hold([fetched(2)])
    taken = Taken(("q", 0), 2, 0, b"", True)
    state, away = await elsewhere.away_from(taken, "first")
    assert (decode(state).ahead, away, told) == ([1], [2], [])
    state, away = await elsewhere.away_from(taken, "second")
    assert (decode(state).ahead, away, told) == ([], [], ["q"])
    await elsewhere.close()


async def test_what_is_said_again_and_heard_stays() -> None:
    elsewhere, seat = made()
    seat.is_deaf = True
    with pytest.raises(ConnectionLost):
        await elsewhere.hold([fetched(4)])
    seat.is_deaf = False
    await elsewhere.hold([fetched(4)])
    await asyncio.sleep(0.5)  # what is tested is that time passes
    assert seat.pool.is_held((0, 4), "me")
    await elsewhere.close()


async def test_what_is_said_again_while_it_is_taken_back_is_taken_back_again() -> None:
    """The answer to the second word was lost, too."""
    elsewhere, seat = made()
    seat.is_deaf = True
    with pytest.raises(ConnectionLost):
        await elsewhere.hold([fetched(4)])
    seat.is_deaf = False
    seat.goes_on.clear()
    await seat.takes_back.wait()
    seat.is_deaf = True
    again = asyncio.create_task(elsewhere.hold([fetched(4)]))
    await asyncio.sleep(0.05)  # it is said now, or waits until the other is answered
    seat.goes_on.set()
    with pytest.raises(ConnectionLost):
        await again
    assert seat.pool.is_held((0, 4), "me")
    seat.is_deaf = False
    await until(lambda: not seat.pool.is_taken((0, 4)), "it is taken back")
    await elsewhere.close()


async def test_what_is_deleted_is_forgotten_and_said_once() -> None:
    elsewhere, seat = made()
    await elsewhere.hold([fetched(4), fetched(6)])
    await elsewhere.settle([fetched(4), fetched(6)], ())
    await elsewhere.deleted({0: 5, 1: 9})
    assert seat.pool.ahead(0) == [6]
    seat.is_deaf = True  # whoever says something now is told that the answer was lost
    await elsewhere.deleted({0: 5})
    await elsewhere.close()


async def test_what_was_finished_by_a_word_without_an_answer_is_not_refused_when_it_is_said_again() -> None:
    """Its handler's work counts: who is told that the lease was lost undoes it."""
    elsewhere, seat = made()
    mine, others = fetched(4), fetched(5)
    await elsewhere.hold([mine])
    seat.is_deaf = True
    with pytest.raises(ConnectionLost):
        await elsewhere.settle([mine, others], ())
    seat.is_deaf = False
    assert await elsewhere.settle([mine, others], ()) == [others]
    assert await elsewhere.settle([mine], ()) == []
    await elsewhere.close()


@pytest.mark.parametrize(
    "said",
    [Word("other", back=[Kept(0, 4, 1, 1, 0, due_at=1_000.0)]), Word("other", done=[(0, 4)])],
    ids=["waits for a retry", "is finished"],
)
async def test_what_a_former_owner_said_of_it_keeps_nobody_from_giving_it_up(said: Word) -> None:
    """It was taken over with its partition since, and is in hand here; or its end is on its way to the store."""
    elsewhere, seat = made()
    seat.pool.apply(Word("other", 6.0, take=Take(1, 1, [Offer(0, 4, 7)])), 0, 1.0)
    seat.pool.apply(said, 0, 1.0)
    await elsewhere.hold([fetched(4)])
    assert seat.pool.is_held((0, 4), "me") != bool(said.done)
    await elsewhere.close()


async def test_what_somebody_else_holds_is_not_given_up() -> None:
    elsewhere, seat = made()
    seat.pool.apply(Word("other", 6.0, take=Take(1, 1, [Offer(0, 4, 7)])), 0, 1.0)
    with pytest.raises(BackendError, match="somebody else"):
        await elsewhere.hold([fetched(4)])
    assert seat.pool.is_held((0, 4), "other")
    await elsewhere.close()
