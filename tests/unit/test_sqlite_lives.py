"""The SQLite driver: what a member has taken is never forgotten while the file says that he has it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence, Set
from pathlib import Path
from unittest.mock import patch

import pytest

from hivewire.backend import Fetched
from hivewire.backends.sqlite import SQLiteBackend
from hivewire.backends.sqlite.consumer import SQLiteConsumer
from hivewire.backends.sqlite.schema import lease_clock
from hivewire.backends.sqlite.transaction import Transaction
from hivewire.errors import BackendError, Closed
from tests.unit.sqlite_driver import Owner, member, opened, put, texts


class Told(Owner):
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[list[str] | type[BaseException] | str] = []
        self.taken: list[Fetched] = []
        self.arrived = asyncio.Event()

    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        self.events.append(texts(batch) if error is None else type(error))
        self.taken += batch
        self.arrived.set()

    def lost(self, shards: Set[int]) -> None:
        super().lost(shards)
        self.events.append("lost")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


async def waiting(backend: SQLiteBackend) -> tuple[SQLiteConsumer, Told]:
    """A consumer that is told of what comes, in its first life."""
    owner = Told()
    consumer = await backend.consume("q", member(lease_s=60.0), owner)
    assert isinstance(consumer, SQLiteConsumer)
    assert consumer.fetch_now(10, lanes=10, run=10, starting=0) == ((), True)
    return consumer, owner


def end_lives(path: Path, consumer: SQLiteConsumer) -> None:
    """As another process does when a lease has run out."""
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM members")
    db.close()
    consumer.membership.until = 0.0


async def test_who_lost_its_lease_is_told_so_before_what_its_next_life_takes(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        end_lives(path, consumer)
        await put(backend, "q", "k", "one")
        await asyncio.wait_for(owner.arrived.wait(), 10)
        assert owner.events == ["lost", ["one"]]
        await asyncio.sleep(0.05)
        assert owner.losses == 1


async def test_a_life_that_ended_for_its_process_does_not_go_on_by_a_renewal_stored_just_then(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        await put(backend, "q", "k", "one", "two")
        await asyncio.wait_for(owner.arrived.wait(), 10)
        taken = owner.taken[0]
        assert consumer.holds(taken)
        consumer.membership.until = lease_clock() - 1.0
        assert not consumer.holds(taken), "its time is over: the engine forgets all that it holds"
        consumer.membership.until = lease_clock() + 60.0  # the keeper notes a renewal that it stored before
        assert not consumer.holds(taken)
        assert texts(await consumer.fetch(10, 5)) == ["one", "two"]


async def test_a_new_life_that_is_rolled_back_lends_the_old_one_no_time(path: Path) -> None:
    """As on a full disk: what is taken in the name of a life that is over would be nobody's, for ever."""
    write_back, failures = Transaction.write_back, 0

    def fails_once(transaction: Transaction) -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise sqlite3.OperationalError("database or disk is full")
        write_back(transaction)

    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        end_lives(path, consumer)
        with patch.object(Transaction, "write_back", fails_once):
            with pytest.raises(BackendError, match="full"):
                await put(backend, "q", "k", "one")
            await put(backend, "q", "k", "two")
        await asyncio.wait_for(owner.arrived.wait(), 10)
        assert owner.events == ["lost", ["two"]]
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT l.key FROM lanes l JOIN members m ON m.id = l.owner").fetchall() == [("k",)]
        db.close()


async def test_what_is_held_in_the_name_of_nobody_is_freed_when_a_lease_ends(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        await put(backend, "q", "k", "one")
        await asyncio.wait_for(owner.arrived.wait(), 10)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE lanes SET owner = 9999")
            db.execute("INSERT INTO members(name, pid, boot, lease_until, lease_s) VALUES ('dead', 1, '', 0, 1)")
        db.close()
        consumer.ask_no_more()
        other = await backend.consume("q", member("other"), Owner())
        (taken,) = await other.fetch(10, 10)
        assert (texts([taken]), taken.suspect) == (["one"], True)
        assert (await backend.depth("q")).in_flight == 1


async def test_who_leaves_gives_back_nothing_that_was_of_an_earlier_life(path: Path) -> None:
    """It is somebody else's by then; a second consumer of the process has begun the next life."""
    async with opened(path) as backend, opened(path) as elsewhere:
        consumer, owner = await waiting(backend)
        await put(backend, "q", "k", "one")
        await asyncio.wait_for(owner.arrived.wait(), 10)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE members SET lease_until = 0")
        db.close()
        consumer.membership.until = 0.0
        other = await elsewhere.consume("q", member("other"), Owner())
        (taken,) = await other.fetch(10, 10)
        await backend.consume("r", member(lease_s=60.0), Owner())
        assert consumer.membership.token > owner.taken[0].token
        await consumer.close()
        assert texts(await other.fetch(10, 0)) == []
        assert (await backend.depth("q")).in_flight == 1
        assert await other.settle([taken]) == []
        depth = await backend.depth("q")
        assert (depth.ready, depth.in_flight) == (0, 0)


@pytest.mark.parametrize("closes", [False, True], ids=["goes on", "closes"])
async def test_who_leaves_while_the_file_is_in_trouble_gives_back_afterwards(path: Path, *, closes: bool) -> None:
    """Its lease is renewed for the others of its process: it would keep what it had for as long as that lives."""
    is_full = False
    write_back = Transaction.write_back

    def may_fail(transaction: Transaction) -> None:
        if is_full:
            raise sqlite3.OperationalError("database or disk is full")
        write_back(transaction)

    async with opened(path) as elsewhere:
        other = await elsewhere.consume("q", member("other"), Owner())
        async with opened(path) as backend:
            stays = await backend.consume("r", member(lease_s=60.0), Owner())
            consumer = await backend.consume("q", member(lease_s=60.0), Owner())
            await put(backend, "q", "k", "one")
            assert texts(await consumer.fetch(10, 10)) == ["one"]
            with patch.object(Transaction, "write_back", may_fail):
                is_full = True
                await consumer.close()
                is_full = False
                if closes:
                    await backend.close()
                assert texts(await other.fetch(10, 10)) == ["one"]
            if not closes:
                await put(backend, "r", "k", "two")
                assert texts(await stays.fetch(10, 10)) == ["two"]
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "leave q"]


async def test_what_was_taken_for_who_asks_no_more_still_comes(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        sent = asyncio.ensure_future(put(backend, "q", "k", "one"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # with the writer by now, who may have stored and taken it
        consumer.ask_no_more()
        await sent
        taken = await consumer.fetch(10, 0)
        assert [*owner.events, texts(taken)] in ([["one"], []], [["one"]])


async def test_who_asks_no_more_takes_nothing_from_others(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        other = await backend.consume("q", member("other"), Owner())
        consumer.ask_no_more()
        await put(backend, "q", "k", "one")
        assert texts(await other.fetch(10, 5)) == ["one"]
        assert owner.events == []


async def test_who_leaves_is_told_that_nothing_comes(path: Path) -> None:
    async with opened(path) as backend:
        consumer, owner = await waiting(backend)
        await consumer.close()
        assert owner.events == [Closed]
        with pytest.raises(Closed):
            consumer.fetch_now(10, lanes=10, run=10, starting=0)
