"""The SQLite driver: what is stored for somebody who waits for it, and is taken in the same transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from hivewire.backend import Append, Fetched, QueueSpec, Record
from hivewire.backends.sqlite.consumer import SQLiteConsumer
from hivewire.backends.sqlite.transaction import Transaction
from hivewire.errors import BackendError
from tests.unit.sqlite_driver import Owner, member, opened, record, texts

_KIB = 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


def records(number: int, key: str = "k", **fields: Any) -> list[Record]:
    return [record(key, f"{key}{place}", **fields) for place in range(number)]


def long(*sizes: int) -> list[Record]:
    return [record("k", f"{place:{size}d}") for place, size in enumerate(sizes)]


def left(path: Path) -> dict[str, int]:
    """What the queue says that it holds; rows of lanes and packs, how many of these expire, and are too long."""
    with sqlite3.connect(path) as db:
        held, in_flight = db.execute("SELECT held, in_flight FROM queues WHERE name = 'q'").fetchone()
        lanes, taken = db.execute("SELECT count(*), total(taken) FROM lanes").fetchone()
        packs, ends = db.execute("SELECT count(*), count(expires_at) FROM packs").fetchone()
        too_long = db.execute("SELECT total(last > first AND (last - first > 127 OR length(data) > 131072)) FROM packs")
        counts = (held, in_flight, lanes, int(taken), packs, ends, int(too_long.fetchone()[0]))
    db.close()
    return dict(zip(NOTHING, counts, strict=True))


NOTHING = dict.fromkeys(("held", "in_flight", "lanes", "taken", "packs", "ends", "too long"), 0)


SHAPES = {
    "one": records(1),
    "one that is long": long(2 * _KIB),
    "one that ends": records(1, ttl_s=60.0),
    "one pack": records(10),
    "one pack that ends": records(10, ttl_s=60.0),
    "a whole pack": records(128),
    "more than a pack": records(129),
    "too many bytes for a pack": long(100 * _KIB, 100 * _KIB, 7),
    "two kinds": [*records(3), *records(3, priority=9)],
    "two keys": [*records(3, "a"), *records(3, "b")],
    "second lives": records(3, replay=1),
}
WANTED = {
    "all": {"limit": 1_000, "lanes": 1_000, "run": 1_000},
    "a few": {"limit": 2, "lanes": 1_000, "run": 1_000},
    "a few of a key": {"limit": 1_000, "lanes": 1_000, "run": 2},
    "one key": {"limit": 1_000, "lanes": 1, "run": 1_000},
}


@pytest.mark.parametrize("mode", ["ordered", "competing"])
@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("sent", SHAPES.values(), ids=SHAPES)
async def test_each_comes_once_in_order_and_nothing_is_left(
    path: Path, sent: list[Record], wanted: dict[str, int], mode: Any
) -> None:
    async with opened(path) as backend:
        await backend.declare(QueueSpec(name="q", mode=mode))
        consumer = await backend.consume("q", member(), Owner())
        waiting = asyncio.ensure_future(consumer.fetch(wanted["limit"], 10, lanes=wanted["lanes"], run=wanted["run"]))
        await asyncio.sleep(0)
        assert not await backend.append([Append("q", sent)])
        got: list[Fetched] = []
        taken = await waiting
        while taken:
            assert len(taken) <= wanted["limit"]
            of_lanes = Counter(one.record.id if mode == "competing" else one.record.key for one in taken)
            assert len(of_lanes) <= wanted["lanes"]
            assert max(of_lanes.values()) <= wanted["run"]
            found = left(path)
            assert found["ends"] == (found["packs"] if sent[0].ttl_s else 0)
            assert not found["too long"]
            assert (found["held"], found["in_flight"]) == (len(sent) - len(got), len(taken))
            assert found["taken"] == len(taken)
            got += taken
            assert await consumer.settle(taken) == []
            taken = await consumer.fetch(wanted["limit"], 0, lanes=wanted["lanes"], run=wanted["run"])
        assert not [fetched for fetched in got if fetched.seen or fetched.suspect or fetched.starts]
        assert sorted(texts(got)) == sorted(one.body.decode() for one in sent)
        for key in {one.key for one in sent}:
            in_order = [one.body for one in sent if one.key == key]
            assert mode == "competing" or [one.record.body for one in got if one.record.key == key] == in_order
        assert left(path) == NOTHING


@pytest.mark.parametrize("number", [1, 10])
async def test_what_comes_for_a_lane_that_is_held_stays_behind_it(path: Path, number: int) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        await backend.append([Append("q", records(2))])
        first = await consumer.fetch(9, 0)
        waiting = asyncio.ensure_future(consumer.fetch(99, 10))
        await asyncio.sleep(0)
        await backend.append([Append("q", records(number))])
        assert not waiting.done()
        await consumer.settle(first)
        then = await waiting
        assert texts(then) == [f"k{place}" for place in range(number)]
        await consumer.settle(then)
        assert left(path) == NOTHING


@pytest.mark.parametrize("number", [1, 10])
async def test_what_is_rolled_back_is_held_by_nobody(path: Path, number: int) -> None:
    write_back, failures = Transaction.write_back, 0

    def fails_once(transaction: Transaction) -> None:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise sqlite3.OperationalError("database or disk is full")
        write_back(transaction)

    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        assert isinstance(consumer, SQLiteConsumer)
        waiting = asyncio.ensure_future(consumer.fetch(99, 10, starting=8))
        await asyncio.sleep(0)
        sent = records(number)
        with patch.object(Transaction, "write_back", fails_once), pytest.raises(BackendError, match="full"):
            await backend.append([Append("q", sent)])
        assert failures
        assert left(path) == NOTHING
        assert not consumer.out
        if waiting.done():  # it was told, too
            assert isinstance(waiting.exception(), BackendError)
            waiting = asyncio.ensure_future(consumer.fetch(99, 10, starting=8))
            await asyncio.sleep(0)
        assert not await backend.append([Append("q", sent)])
        taken = await waiting
        assert [(one.at, one.starts, one.marked) for one in taken] == [
            (place, int(place == 1), place == 1) for place in range(1, number + 1)
        ]
        assert await consumer.settle(taken) == []
        assert left(path) == NOTHING


async def test_what_is_taken_as_it_comes_is_bounded_by_its_bytes(path: Path) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        waiting = asyncio.ensure_future(consumer.fetch(99, 10))
        await asyncio.sleep(0)
        await backend.append([Append("q", [record(key, "x" * 5 * _KIB * _KIB) for key in "abc"])])
        assert [one.record.key for one in await waiting] == ["a", "b"], "the last one may be too long"
        assert [one.record.key for one in await consumer.fetch(99, 0)] == ["c"]


async def test_a_settlement_that_is_rolled_back_can_be_repeated(path: Path) -> None:
    def fails(transaction: Transaction) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        await backend.append([Append("q", [*records(3, "a"), *records(3, "b")])])
        taken = await consumer.fetch(99, 0)
        for part in (taken[:3], taken[3:]):
            with patch.object(Transaction, "write_back", fails), pytest.raises(BackendError, match="full"):
                await consumer.settle(part)
            assert await consumer.settle(part) == []
        assert left(path) == NOTHING
