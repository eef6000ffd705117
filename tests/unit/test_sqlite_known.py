"""The SQLite driver: what it remembers of the file's queues is never older than the file."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from hivewire.backend import Append, Fetched, QueueSpec, Room
from hivewire.backends.sqlite import SQLiteBackend
from hivewire.backends.sqlite.transaction import Transaction, blocks_in
from hivewire.errors import BackendError
from tests.unit.sqlite_driver import Owner, member, opened, put, record, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


async def held(backend: SQLiteBackend) -> int:
    depth = await backend.depth("q")
    return depth.ready + depth.in_flight


async def test_what_another_process_has_written_is_read_anew(path: Path) -> None:
    async with opened(path) as one, opened(path) as other:
        for number in range(0, 12, 2):
            await put(one, "q", "k", number)
            await put(other, "q", "k", number + 1)
        assert await held(one) == 12
        consumer = await other.consume("q", member(), Owner())
        taken = await consumer.fetch(100, 0)
        assert texts(taken) == [str(number) for number in range(12)]
        await consumer.settle(taken[:5])
        await put(one, "q", "k", 12)
        assert await held(one) == 8
        await consumer.settle(taken[5:])
        assert await held(other) == 1


async def test_the_epoch_of_another_process_is_seen(path: Path) -> None:
    async with opened(path) as one, opened(path) as other:
        await put(one, "q", "k", 1)
        await other.put("agent/a", b"takes all", 0)
        await put(one, "q", "k", 2)
        assert one.epoch == other.epoch > 0
        await one.put("agent/b", b"takes all", 0)
        seen = one.epoch
        await put(one, "q", "k", 3)
        assert one.epoch == seen == other.epoch + 1


def _fail(transaction: Transaction) -> None:
    queue = transaction.queue_named("q")
    assert queue is not None
    queue.held += 1_000
    queue.dirty = True
    raise ValueError("no good")


async def test_what_was_rolled_back_is_forgotten(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", 1, 2)
        for _ in range(2):
            failed = backend.writer.submit(_fail)
            stored = backend.append_soon("q", record("k", "3"), Room.CAP)
            assert stored is not None
            with pytest.raises(BackendError):
                await failed
            assert await stored is None
        assert await held(backend) == 4
        consumer = await backend.consume("q", member(), Owner())
        assert texts(await consumer.fetch(9, 0)) == ["1", "2", "3", "3"]


async def test_a_queue_that_was_dropped_is_not_remembered(path: Path) -> None:
    async with opened(path) as backend:
        first = await backend.declare(QueueSpec(name="q", cap=3))
        await put(backend, "q", "k", 1)
        await backend.drop_queue("q")
        assert first != await backend.declare(QueueSpec(name="q", cap=5))
        await put(backend, "q", "k", 2)
        assert await held(backend) == 1


async def test_more_queues_than_are_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivewire.backends.sqlite.transaction._MOST_KNOWN", 3)
    async with opened(path) as backend:
        names = [f"q{number}" for number in range(8)]
        for number in range(3):
            assert not await backend.append([Append(name, [record("k", str(number))]) for name in names])
            assert not await backend.append([Append(names[number], [record("k", "more")])])
        for place, name in enumerate(names):
            consumer = await backend.consume(name, member(), Owner())
            sent = ["0", "1", "2"]
            if place < 3:
                sent.insert(place + 1, "more")
            assert texts(await consumer.fetch(9, 0)) == sent


@pytest.mark.parametrize("at_once", [1, 7, 60])
async def test_each_settled_id_is_in_the_file_once_and_short_rows_stay_short(path: Path, at_once: int) -> None:
    sent = [record("k", str(number)) for number in range(60)]
    starts = range(0, 60, at_once)
    for some in (starts[: len(starts) // 2], starts[len(starts) // 2 :]):  # the second goes on with what it reads
        async with opened(path) as backend:
            consumer = await backend.consume("q", member(), Owner())
            for start in some:
                assert not await backend.append([Append("q", sent[start : start + at_once])])
                assert not await consumer.settle(await consumer.fetch(at_once, 5.0))
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT block, at, number, ids FROM settled ORDER BY block").fetchall()
        [(newest, recent)] = db.execute("SELECT settled, recent FROM queues").fetchall()
    blocks = [block for *_, data in [*rows, (newest, 0.0, 0, recent)] for block in blocks_in(data)]
    assert [number for number, _, _ in blocks] == list(range(1, newest + 1))
    assert [life for _, _, lives in blocks for life in lives] == [one.id for one in sent]
    for number, at, count, data in rows:
        inside = blocks_in(data)
        assert (*inside[-1][:2], sum(len(lives) for _, _, lives in inside)) == (number, at, count)
        assert len(data) < 1_000 or len(inside) == 1
    async with opened(path) as another:
        assert not await another.append([Append("q", sent)])
        consumer = await another.consume("q", member("another"), Owner())
        assert all(fetched.seen for fetched in await consumer.fetch(60, 5.0))


class Failing(Owner):
    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        raise RuntimeError("told")


async def test_who_fails_when_told_keeps_it_from_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(path) as backend:
        failing = await backend.consume("q", member(), Failing())
        waiting = await backend.consume("other", member(), Owner())
        failing.fetch_now(1, lanes=1, run=1, starting=0)
        fetch = asyncio.create_task(waiting.fetch(1, 30.0))
        await asyncio.sleep(0)
        assert not await backend.append([Append(name, [record("k", name)]) for name in ("q", "other")])
        assert texts(await fetch) == ["other"]
        assert [entry.message for entry in caplog.records] == ["who waited for the file failed when told"]
