"""Outcomes on their way to the store: what goes at once, and what waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence, Set

import pytest

from hivewire.backend import Again, Consumer, Dead, Letter, Unfinished
from hivewire.engine.settling import Book, Settling
from hivewire.engine.tasks import Tasks
from hivewire.errors import ConnectionLost
from hivewire.record import Fetched, Record
from hivewire.testing.conformance.waiting import until

NEVER_S = 3_600.0


class Sent(Book):
    """A store that takes all, and what it was given, call by call."""

    def __init__(self, *, direct: bool) -> None:
        self.calls: list[list[str]] = []
        self.tasks = Tasks()
        self.settling = Settling("q", self, self.tasks, pace_s=NEVER_S)
        self.left: Sequence[Unfinished] = ()
        """What the last call said of those that are not done."""
        self.problems: list[Exception] = []
        """What goes wrong with the next calls."""
        self.may_end = asyncio.Semaphore(1_000)
        """One for each call."""
        self.called = asyncio.Event()
        if direct:
            self.settling.direct = Direct(self)

    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        self.calls.append([fetched.record.id for fetched in [*done, *(outcome.fetched for outcome in rest)]])
        self.called.set()
        self.left = rest
        await self.may_end.acquire()
        if self.problems:
            raise self.problems.pop()
        return ()

    async def until_called(self, times: int) -> None:
        while len(self.calls) < times:
            self.called.clear()
            await asyncio.wait_for(self.called.wait(), 10)

    def stored(self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Set[int]) -> None: ...

    def done(self, id: str) -> Fetched:
        fetched = Fetched(0, id, 1, Record(id, "k", b""), 0.0)
        self.settling.done.append(fetched)
        self.settling.wake()
        return fetched


class Direct(Consumer):
    """The same store, for whom no task waits."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        raise NotImplementedError

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        raise NotImplementedError

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return await self._sent.store(done, rest)

    def settle_soon(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()
    ) -> asyncio.Future[Sequence[Fetched]]:
        return asyncio.ensure_future(self.settle(done, rest))

    async def close(self) -> None: ...


@pytest.fixture(params=["by a task", "directly"])
async def sent(request: pytest.FixtureRequest) -> AsyncIterator[Sent]:
    made = Sent(direct=request.param == "directly")
    yield made
    await made.tasks.close()


async def turns(enough: Callable[[], bool] = lambda: False) -> None:
    """Until `enough`, or no turn of the loop changes anything any more."""
    for _ in range(50):
        if enough():
            return
        await asyncio.sleep(0)


async def test_after_a_pause_an_outcome_goes_at_once_and_those_behind_it_together(sent: Sent) -> None:
    sent.done("a")
    await turns(lambda: bool(sent.calls))
    assert sent.calls == [["a"]]
    sent.done("b")
    await turns()
    sent.done("c")
    await turns()
    assert sent.calls == [["a"]]
    await sent.settling.flushed()
    assert sent.calls == [["a"], ["b", "c"]]


async def test_nobody_waits_for_the_pace(sent: Sent) -> None:
    sent.done("a")
    await turns(lambda: bool(sent.calls))
    sent.done("b")
    await turns()
    assert await sent.settling.expect(sent.done("c"))  # somebody waits for this one: those before it go with it
    assert sent.calls == [["a"], ["b", "c"]]
    sent.settling.add(Again(Fetched(0, "d", 1, Record("d", "k", b""), 0.0), 1.0))
    await turns(lambda: len(sent.calls) == 3)
    assert sent.calls[2:] == [["d"]]


async def test_what_could_not_be_stored_goes_again_before_what_came_since(sent: Sent) -> None:
    sent.problems.append(ConnectionLost("away"))
    sent.done("a")
    await turns(lambda: bool(sent.calls))
    sent.done("b")
    await sent.settling.flushed()
    assert sent.calls[0] == ["a"]
    assert [id for call in sent.calls[1:] for id in call] == ["a", "b"]


@pytest.mark.parametrize("fails_first", [False, True], ids=["stored", "stored at the second try"])
@pytest.mark.parametrize("somebody_waits", [True, False], ids=["both awaited", "the second awaited"])
async def test_who_waits_for_the_second_outcome_of_a_record_is_not_told_of_the_first(
    sent: Sent, *, fails_first: bool, somebody_waits: bool
) -> None:
    """A failed attempt is on its way to the store while the next one is acknowledged."""
    record = Fetched(0, "a", 1, Record("a", "k", b""), 0.0)
    sent.may_end = asyncio.Semaphore(0)
    first = sent.settling.expect(record) if somebody_waits else None
    sent.settling.add(Again(record, 0.0))
    await turns(lambda: bool(sent.calls))
    second = sent.settling.expect(record)
    sent.settling.done.append(record)
    if fails_first:
        sent.problems.append(ConnectionLost("away"))
    sent.may_end.release()
    await sent.until_called(2)
    assert not second.done(), "what it waits for is not stored yet"
    for _ in range(2):
        sent.may_end.release()
    assert await second
    assert first is None or await first


async def test_of_the_outcomes_of_one_record_in_one_batch_the_last_is_stored(sent: Sent) -> None:
    a, b, c = (Fetched(0, id, 1, Record(id, "k", b""), 0.0) for id in "abc")
    sent.may_end = asyncio.Semaphore(0)
    sent.done("first")
    await turns(lambda: bool(sent.calls))
    letter = Letter(reason="max_attempts", error="", attempts=2, first_at=0.0, worker="")
    told = [sent.settling.expect(a)]
    for outcome in (Again(a, 0.0), Again(b, 0.0), Again(c, 0.0), Again(b, 1.0), Dead(c, letter)):
        sent.settling.add(outcome)
    told.append(sent.settling.expect(a))
    sent.settling.done.append(a)
    for _ in range(2):
        sent.may_end.release()
    await sent.settling.flushed()
    assert sent.calls[1:] == [["a", "b", "c"]]
    assert sent.left == [Again(b, 1.0), Dead(c, letter)]
    assert [await one for one in told] == [True, True]


async def test_whoever_waits_is_told_when_it_is_given_up(sent: Sent) -> None:
    sent.may_end = asyncio.Semaphore(0)
    waiters = [sent.settling.expect(sent.done("a"))]
    await turns(lambda: bool(sent.calls))
    waiters.append(sent.settling.expect(sent.done("b")))
    sent.settling.give_up()
    assert [waiter.result() for waiter in waiters] == [False, False]


async def test_who_gives_up_while_outcomes_wait_for_more_stores_nothing_afterwards(sent: Sent) -> None:
    sent.settling.pace_s = 0.02
    sent.done("a")
    await turns(lambda: bool(sent.calls))
    sent.done("b")
    await turns()
    sent.settling.give_up()
    await sent.tasks.close()
    await asyncio.sleep(0.05)  # what is tested is that nothing happens
    assert sent.calls == [["a"]]


async def test_who_waits_for_the_end_is_let_go_when_nothing_more_is_stored() -> None:
    sent = Sent(direct=False)
    sent.problems = [ConnectionLost("away") for _ in range(1_000)]
    sent.done("a")
    await until(lambda: sent.calls, "it is tried")
    sent.done("b")
    sent.settling.give_up()
    sent.problems.clear()
    await asyncio.wait_for(sent.settling.flushed(), 10)
    sent.done("c")  # nobody stores it
    await asyncio.wait_for(sent.settling.flushed(), 10)
    assert sent.calls[-1] == ["b"]
    await sent.tasks.close()


async def test_who_waits_for_the_end_is_let_go_when_the_tasks_are_cancelled() -> None:
    sent = Sent(direct=False)
    sent.problems = [ConnectionLost("away") for _ in range(1_000)]
    sent.done("a")
    waiting = asyncio.ensure_future(sent.settling.flushed())
    await until(lambda: sent.calls, "it is tried")
    await sent.tasks.close()
    await asyncio.wait_for(waiting, 10)


async def test_who_waits_for_the_end_is_let_go_without_a_task_too() -> None:
    """The store's answer comes when all is closed, or is not asked for any more."""
    sent = Sent(direct=True)
    sent.may_end = asyncio.Semaphore(0)
    sent.problems = [ConnectionLost("away")]
    sent.done("a")
    await turns(lambda: bool(sent.calls))
    waiting = asyncio.ensure_future(sent.settling.flushed())
    await turns()
    await sent.tasks.close()
    sent.may_end.release()
    await asyncio.wait_for(waiting, 10)
    given_up = Sent(direct=True)
    given_up.done("b")
    waiting = asyncio.ensure_future(given_up.settling.flushed())
    given_up.settling.give_up()
    await asyncio.wait_for(waiting, 10)
    assert not given_up.calls
