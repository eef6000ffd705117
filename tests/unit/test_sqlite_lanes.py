"""The SQLite driver: claims in order, attempts, settlements, fencing."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from hivewire.backend import Again, Append, Back, Backend, Dead, Depth, Fetched, QueueSpec
from hivewire.backends.sqlite import taking
from hivewire.backends.sqlite.consumer import SQLiteConsumer
from hivewire.errors import BackendError
from tests.unit.sqlite_driver import LETTER, Owner, member, opened, put, record, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


async def test_keys_come_oldest_first_each_in_order(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "a", "a1", "a2")
        await put(backend, "q", "b", "b1", "b2")
        await put(backend, "q", "a", "a3")
        consumer = await backend.consume("q", member(), Owner())
        assert texts(await consumer.fetch(10, 0)) == ["a1", "a2", "a3", "b1", "b2"]


async def test_higher_priority_comes_sooner_but_never_within_a_key(path: Path) -> None:
    async with opened(path) as backend:
        await put_ranked(backend, "a", 5, 10, 1)
        await put_ranked(backend, "b", 8)
        await put_ranked(backend, "c", 5)
        consumer = await backend.consume("q", member(), Owner())
        got = []
        while taken := await consumer.fetch(1, 0):
            got += texts(taken)
            await consumer.settle(taken)
        assert got == ["b8", "a5", "a10", "c5", "a1"]


async def put_ranked(backend: Backend, key: str, *priorities: int) -> None:
    records = [record(key, f"{key}{priority}", priority=priority) for priority in priorities]
    assert not await backend.append([Append("q", records)])


@pytest.mark.parametrize("run", range(1, 8))
async def test_runs_that_are_settled_whole_leave_the_rest_of_their_lane(path: Path, run: int) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(3))
        await put(backend, "q", "k", *range(3, 6))
        consumer = await backend.consume("q", member(), Owner())
        stored, got = 6, list[str]()
        while taken := await consumer.fetch(10, 0, run=run):
            assert len(taken) == min(run, stored - len(got))
            got += texts(taken)
            if len(got) == 6:  # one more comes while the end of the lane is held
                await put(backend, "q", "k", "last")
                stored = 7
            assert not await consumer.settle(taken)
            assert not await consumer.settle(taken)
            depth = await backend.depth("q")
            assert (depth.ready, depth.in_flight) == (stored - len(got), 0)
        assert got == ["0", "1", "2", "3", "4", "5", "last"]
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT (SELECT count(*) FROM packs), (SELECT count(*) FROM lanes)").fetchone() == (0, 0)


async def test_a_fetch_takes_no_more_than_it_asks_for(path: Path) -> None:
    async with opened(path) as backend:
        for key in "abc":
            await put(backend, "q", key, *(f"{key}{number}" for number in range(5)))
        consumer = await backend.consume("q", member(), Owner())
        assert texts(await consumer.fetch(10, 0, lanes=2, run=2)) == ["a0", "a1", "b0", "b1"]
        assert texts(await consumer.fetch(3, 0)) == ["c0", "c1", "c2"]
        assert texts(await consumer.fetch(10, 0)) == []


async def test_a_lane_is_with_one_member_until_all_that_was_taken_is_settled(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(6))
        first = await backend.consume("q", member("one"), Owner())
        second = await backend.consume("q", member("two"), Owner())
        taken = await first.fetch(3, 0)
        assert not await second.fetch(10, 0)
        await first.settle(taken[:2])
        assert not await second.fetch(10, 0)
        await first.settle(taken[2:])
        assert texts(await second.fetch(10, 0)) == ["3", "4", "5"]


async def test_what_is_given_back_comes_first_again(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(5))
        consumer = await backend.consume("q", member(), Owner())
        taken = await consumer.fetch(4, 0)
        await consumer.settle(taken[:1], [Back(fetched) for fetched in taken[1:]])
        assert texts(await consumer.fetch(10, 0)) == ["1", "2", "3", "4"]


async def test_records_settled_out_of_turn_do_not_come_again(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(8))
        consumer = await backend.consume("q", member(), Owner())
        taken = await consumer.fetch(6, 0)
        await consumer.settle([taken[3]])
        await consumer.settle([taken[5]], [Dead(taken[1], LETTER)])
        assert (await backend.depth("q")).in_flight == 3
        await consumer.settle((), [Back(taken[4]), Back(taken[2]), Back(taken[0])])
        assert (await backend.depth("q")).ready == 5
        taken = await consumer.fetch(1, 0)
        assert texts(taken) == ["0"]
        await consumer.settle(taken)
        taken = await consumer.fetch(10, 0)
        assert texts(taken) == ["2", "4", "6", "7"]
        await consumer.settle(taken)
        depth = await backend.depth("q")
        assert (depth.ready, depth.in_flight, depth.dead) == (0, 0, 1)
    assert everything_left(path) == {"lanes": 0, "packs": 0, "holes": 0}


async def test_a_run_with_a_record_that_was_settled_before_or_in_another_life_is_looked_at_one_by_one(
    path: Path,
) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(8))
        consumer = await backend.consume("q", member(), Owner())
        taken = await consumer.fetch(8, 0)
        await consumer.settle([taken[1]])
        assert not await consumer.settle(taken[:3])
        assert (await backend.depth("q")).in_flight == 5
        strange = msgspec.structs.replace(taken[4], token=taken[4].token + 1)
        assert await consumer.settle([taken[3], strange, taken[5]]) == [strange]
        assert (await backend.depth("q")).in_flight == 3
        assert not await consumer.settle(taken[3:])
        assert await backend.depth("q") == Depth()
    assert everything_left(path) == {"lanes": 0, "packs": 0, "holes": 0}


def everything_left(path: Path) -> dict[str, int]:
    db = sqlite3.connect(path)
    left = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("lanes", "packs", "holes")}
    db.close()
    return left


async def test_a_retry_blocks_its_key_alone_and_keeps_the_counters(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", "k0", "k1")
        await put(backend, "q", "other", "o0")
        consumer = await backend.consume("q", member(), Owner())
        taken = await consumer.fetch(2, 0)
        taken[0].starts, taken[0].failures, taken[0].crashes = 3, 2, 1
        given_back = time.monotonic()
        await consumer.settle((), [Again(taken[0], 1.5), Back(taken[1])])
        assert (await backend.depth("q")).scheduled == 1
        assert texts(await consumer.fetch(9, 0)) == ["o0"]
        taken = await consumer.fetch(9, 30)
        assert 1.4 < time.monotonic() - given_back < 25
        assert [(f.starts, f.failures, f.crashes) for f in taken] == [(3, 2, 1), (0, 0, 0)]
        await consumer.settle(taken[:1])
        await consumer.settle((), [Back(taken[1])])
        assert [f.starts for f in await consumer.fetch(9, 0)] == [0]


async def test_running_marks_of_the_claim(path: Path) -> None:
    async with opened(path) as backend:
        for key in "abc":
            await put(backend, "q", key, 0, 1)
        consumer = await backend.consume("q", member(), Owner())
        taken = await consumer.fetch(9, 0, starting=2)
        assert [(f.marked, f.starts) for f in taken] == [
            (True, 1), (False, 0), (True, 1), (False, 0), (False, 0), (False, 0),
        ]  # fmt: skip
        taken[0].starts = 0
        await consumer.settle((), [Back(f) for f in taken[:2]])
        assert [(f.marked, f.starts) for f in await consumer.fetch(1, 0)] == [(False, 0)]


async def test_close_gives_back_what_was_not_started(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", 0, 1, 2)
        first = await backend.consume("q", member("one"), Owner())
        taken = await first.fetch(9, 0, starting=1)
        await first.settle(taken[:1])
        await first.close()
        await first.close()
        second = await backend.consume("q", member("two"), Owner())
        taken = await second.fetch(9, 0)
        assert texts(taken) == ["1", "2"]
        assert [(f.starts, f.suspect, f.died) for f in taken] == [(0, False, 0)] * 2


async def test_competing_queues_hand_out_each_record_by_itself(path: Path) -> None:
    async with opened(path) as backend:
        await backend.declare(QueueSpec(name="q", mode="competing"))
        await put(backend, "q", "k", *range(4))
        first = await backend.consume("q", member("one"), Owner())
        second = await backend.consume("q", member("two"), Owner())
        assert texts(await first.fetch(1, 0)) == ["0"]
        assert texts(await second.fetch(9, 0, lanes=2)) == ["1", "2"]
        assert texts(await first.fetch(9, 0)) == ["3"]


async def test_a_member_whose_lease_ran_out_is_refused_and_told(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "a", "a0", "a1")
        await put(backend, "q", "b", "b0")
        owner = Owner()
        first = await backend.consume("q", member("one", lease_s=600), owner)
        taken = await first.fetch(9, 0, starting=1)
        assert first.holds(taken[0])
        assert isinstance(first, SQLiteConsumer)
        first.membership.until = 0.0  # as after a freeze; the keeper renews no more until the lease is a third over
        outside = sqlite3.connect(path, isolation_level=None)
        outside.execute("UPDATE members SET lease_until = 1")
        outside.close()
        assert not first.holds(taken[0])
        async with opened(path) as other:
            second = await other.consume("q", member("two"), Owner())
            again = await second.fetch(9, 5)
            assert texts(again) == ["a0", "a1", "b0"]
            assert [(f.starts, f.died, f.suspect, f.marked) for f in again] == [
                (1, 1, True, False), (0, 0, True, False), (0, 0, True, False),
            ]  # fmt: skip
            assert await first.settle(taken[:1], [Back(taken[1])]) == list(taken[:2])
            assert await first.start(taken[2:]) == list(taken[2:])
            assert owner.losses == 1
            assert not await first.fetch(9, 0)
            assert await second.start(again[:1]) == []
            assert await second.settle(again) == []
        assert (await backend.depth("q")) == msgspec.structs.replace(await backend.depth("q"), ready=0, in_flight=0)


async def test_died_counts_the_lanes_that_ran(path: Path) -> None:
    async with opened(path) as backend:
        for key in "abcd":
            await put(backend, "q", key, f"{key}0", f"{key}1")
        first = await backend.consume("q", member("one", lease_s=600), Owner())
        taken = await first.fetch(9, 0, starting=3)
        await first.settle(taken[:2])  # a is done
        taken[7].starts = 1
        await first.start([taken[7]])  # d1, while d0 is not settled yet
        outside = sqlite3.connect(path, isolation_level=None)
        outside.execute("UPDATE members SET lease_until = 1")
        outside.close()
        async with opened(path) as other:
            second = await other.consume("q", member("two"), Owner())
            again = await second.fetch(9, 5)
            assert [(f.record.body.decode(), f.starts, f.died) for f in again] == [
                ("b0", 1, 3), ("b1", 0, 0), ("c0", 1, 3), ("c1", 0, 0), ("d0", 0, 0), ("d1", 1, 3),
            ]  # fmt: skip


async def test_cancelled_fetches_lose_nothing(path: Path) -> None:
    chance = random.Random(5)
    async with opened(path, sqlite_synchronous="normal") as backend:
        consumer = await backend.consume("q", member(), Owner())
        got: list[str] = []

        async def send() -> None:
            for number in range(300):
                await put(backend, "q", f"k{number % 7}", number)

        async def take() -> None:
            while len(got) < 300:
                fetch = asyncio.create_task(consumer.fetch(5, 5))
                await asyncio.wait({fetch}, timeout=chance.random() * 0.002)
                fetch.cancel()
                try:
                    taken = await fetch
                except asyncio.CancelledError:
                    continue
                got.extend(texts(taken))
                assert await consumer.settle(taken) == []

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(send())
            group.create_task(take())
        assert sorted(map(int, got)) == list(range(300))
        assert (await backend.depth("q")).in_flight == 0


async def test_one_bad_operation_does_not_spoil_the_others(path: Path) -> None:
    async with opened(path) as backend:
        sends = [put(backend, "q", "k", number) for number in range(3)]
        bad = backend.append([Append("q", [record("\ud800")])])
        results = await asyncio.gather(*sends[:2], bad, sends[2], return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["NoneType", "NoneType", "BackendError", "NoneType"]
        consumer = await backend.consume("q", member(), Owner())
        assert texts(await consumer.fetch(9, 0)) == ["0", "1", "2"]


async def test_bodies_of_any_bytes_and_sizes(path: Path) -> None:
    bodies = [b"", b"\x00", bytes(range(256)) * 9, b"\xff" * 1_000_000, *(b"x" * size for size in range(0, 5000, 97))]
    async with opened(path) as backend:
        await backend.append([Append("q", [msgspec.structs.replace(record("k"), body=body) for body in bodies])])
        consumer = await backend.consume("q", member(), Owner())
        taken: list[Fetched] = []
        while part := await consumer.fetch(7, 0):
            taken.extend(part)
            await consumer.settle(part)
        assert [fetched.record.body for fetched in taken] == bodies


async def test_a_claim_is_bounded_by_the_bytes_of_its_bodies(path: Path) -> None:
    async with opened(path) as backend:
        big = [msgspec.structs.replace(record("k"), body=bytes(3 * 1024 * 1024)) for _ in range(5)]
        await backend.append([Append("q", big)])
        consumer = await backend.consume("q", member(), Owner())
        assert len(await consumer.fetch(100, 0)) == 3


async def test_no_statement_of_a_claim_scans_or_sorts(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", 0)
    db = sqlite3.connect(path)
    for statement, values in (
        (taking._READY, (1, -5, 10)),
        (taking._RANK_FROM, (1, -5)),
        (taking._MORE, (1, 1)),
        (taking._HOLES, (1,)),
    ):
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step], plan
    db.close()


async def test_many_lanes_that_get_more_while_they_are_held_go_on_when_they_are_settled(path: Path) -> None:
    """More keys than are looked up at once; what comes next decides the rank of each."""
    keys = [f"k{number:03}" for number in range(120)]
    async with opened(path) as backend:
        for key in keys:
            await put(backend, "q", key, f"{key}.1")
        consumer = await backend.consume("q", member(), Owner())
        first = await consumer.fetch(1_000, 0, run=1)
        assert len(first) == 120
        more = [record(key, f"{key}.2", priority=9 if key < "k060" else 2) for key in reversed(keys)]
        assert not await backend.append([Append("q", more)])
        assert not await consumer.fetch(1_000, 0), "they are held"
        assert not await consumer.settle(first)
        second = texts(await consumer.fetch(1_000, 0))
        assert sorted(second) == [f"{key}.2" for key in keys]
        assert sum(text < "k060" for text in second[:60]) >= 40, "the more urgent have the larger share at first"
        assert (await backend.depth("q")).in_flight == 120


async def test_what_cannot_be_buried_is_still_held(path: Path) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        await put(backend, "q", "k", "one", "two")
        one, two = await consumer.fetch(10, 0)
        cannot = msgspec.structs.replace(LETTER, error=object())
        with pytest.raises(BackendError):
            await consumer.settle([two], [Dead(one, cannot)])
        assert (await backend.depth("q")).in_flight == 2
        assert not await consumer.settle([one, two])
        assert await backend.depth("q") == Depth()
