"""The SQLite driver: storing, caps, idempotency, schedules, dead letters, catalogue, notes."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest

from hivewire.backend import Again, Append, Dead, Duplicate, QueueSpec, Room
from hivewire.backends import sqlite
from hivewire.errors import QueueFull, QueueMissing
from tests.unit.sqlite_driver import LETTER, Owner, member, opened, put, record, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


async def test_the_first_declaration_wins_but_for_an_undecided_mode(path: Path) -> None:
    async with opened(path) as backend:
        await backend.declare(QueueSpec(name="q", cap=7))
        spec = await backend.declare(QueueSpec(name="q", cap=9, mode="competing"))
        assert (spec.cap, spec.mode) == (7, "competing")
        assert (await backend.declare(QueueSpec(name="q", mode="ordered"))).mode == "competing"
    async with opened(path) as backend:
        assert await backend.queues() == [spec]


async def test_a_full_queue_takes_what_fits_and_says_why_not_the_rest(path: Path) -> None:
    async with opened(path, queue_cap=5) as backend, opened(path, queue_cap=5) as other:
        await put(other, "q", "k", 0, 1)
        await put(other, "q", "k", 2, delay_s=60)
        problems = await backend.append([Append("free", [record("k")]), Append("q", [record("k") for _ in range(4)])])
        assert sorted(problems) == [3, 4]
        assert isinstance(problems[3], QueueFull)
        assert "cap is 5" in str(problems[3])
        assert not await backend.append([Append("q", [record("k")], room=Room.ALWAYS)])
        assert not await backend.append([Append("q", [record("k") for _ in range(99)], room=Room.RESERVE)])
        assert len(await backend.append([Append("q", [record("k")], room=Room.RESERVE)])) == 1
        consumer = await other.consume("q", member(), Owner())
        taken = await consumer.fetch(200, 0)
        assert len(await backend.append([Append("q", [record("k")], room=Room.RESERVE)])) == 1
        await consumer.settle(taken)
        assert not await backend.append([Append("q", [record("k") for _ in range(4)])])


async def test_the_same_idempotency_key_is_stored_once(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        sent = [record("k", "first"), record("k", "second"), record("k", "later")]
        appends = [Append("q", [one], idempotency_key="i", window_s=0.2) for one in sent]
        results = await asyncio.gather(backend.append(appends[:1]), other.append(appends[1:2]))
        assert [problem for result in results for problem in result.values()] in (
            [Duplicate(sent[0].id)],
            [Duplicate(sent[1].id)],
        )
        assert not await other.append([Append("another", [sent[2]], idempotency_key="i")])
        consumer = await backend.consume("q", member(), Owner())
        await consumer.settle(await consumer.fetch(9, 0))
        await asyncio.sleep(0.2)
        assert not await other.append(appends[2:])
        assert texts(await consumer.fetch(9, 0)) == ["later"]


async def test_a_refused_message_leaves_no_idempotency_key(path: Path) -> None:
    async with opened(path, queue_cap=1) as backend:
        await put(backend, "q", "k", 0)
        again = Append("q", [record("k")], idempotency_key="i")
        assert isinstance((await backend.append([again]))[0], QueueFull)
        consumer = await backend.consume("q", member(), Owner())
        await consumer.settle(await consumer.fetch(9, 0))
        assert not await backend.append([again])


@pytest.mark.parametrize("same_process", [True, False])
async def test_settled_ids_are_known_when_they_come_again(path: Path, same_process: bool) -> None:
    sent = [record("k", str(number)) for number in range(4)]
    async with opened(path) as backend, opened(path) as other:
        consumer = await backend.consume("q", member(), Owner())
        await backend.append([Append("q", sent)])
        taken = await consumer.fetch(9, 0)
        await consumer.settle(taken[:2], [Dead(taken[2], LETTER), Again(taken[3], 0)])
        await (backend if same_process else other).append([Append("q", [*sent, record("k", "new")])])
        reader = consumer if same_process else await other.consume("q", member("other"), Owner())
        taken = await reader.fetch(9, 0)
        assert [(f.record.body.decode(), f.seen) for f in taken] == [
            ("3", False), ("0", True), ("1", True), ("2", True), ("3", False), ("new", False),
        ]  # fmt: skip
        await reader.settle(taken)


async def test_the_memory_of_settled_ids_is_bounded(path: Path) -> None:
    sent = [record("k", str(number)) for number in range(30)]
    async with opened(path, dedup_window_ids=10) as backend:
        consumer = await backend.consume("q", member(), Owner())
        for one in sent:
            await backend.append([Append("q", [one])])
            await consumer.settle(await consumer.fetch(9, 0))
        await backend.append([Append("q", sent)])
        seen = [fetched.seen for fetched in await consumer.fetch(99, 0)]
        assert seen == [False] * seen.index(True) + [True] * (30 - seen.index(True))
        assert 10 <= sum(seen) <= 20


async def test_delayed_records_come_in_the_order_they_fall_due(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        consumer = await backend.consume("q", member(), Owner())
        begun = time.monotonic()
        await put(other, "q", "k", "late", delay_s=1.3)
        await put(other, "q", "k", "early", delay_s=1.1)
        await put(other, "q", "k", "now")
        assert (await backend.depth("q")).scheduled == 2
        got: list[tuple[str, float]] = []
        while len(got) < 3:
            taken = await consumer.fetch(9, 5)
            got += [(text, time.monotonic() - begun) for text in texts(taken)]
            await consumer.settle(taken)
        assert [text for text, _ in got] == ["now", "early", "late"]
        assert got[1][1] >= 1.1
        assert got[2][1] >= 1.3


async def test_dead_letters_are_kept_listed_revived_purged(path: Path) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        await put(backend, "q", "k", *range(4))
        taken = await consumer.fetch(9, 0)
        await consumer.settle((), [Dead(fetched, LETTER) for fetched in taken])
        first = await backend.dead("q", 2, None)
        second = await backend.dead(None, 9, first[-1].cursor)
        assert [dead.record for dead in [*first, *second]] == [fetched.record for fetched in taken]
        assert first[0].letter == LETTER
        assert not await backend.dead("other", 9, None)
        assert await backend.revive("q", [first[0].record.id, "unknown"]) == 1
        (again,) = await consumer.fetch(9, 5)
        assert (again.record.replay, again.starts, again.seen) == (1, 0, False)
        await consumer.settle([again])
        assert await backend.purge_dead(None, [first[1].record.id], None) == 1
        assert await backend.purge_dead("q", None, 3600) == 0
        assert (await backend.depth("q")).dead == 2
        assert await backend.purge_dead("q", None, None) == 2
        assert (await backend.depth("q")).dead == 0


TTL_S = 1.0
"""Long enough for a loaded machine to get from storing to looking."""


async def test_expired_records_are_buried_unread_but_never_from_a_run_that_is_held(path: Path) -> None:
    async with opened(path) as backend:
        await backend.append([Append("q", [record("k", f"short{n}", ttl_s=TTL_S) for n in range(2)])])
        await put(backend, "q", "k", "stays")
        await backend.append([Append("held", [record("k", "held", ttl_s=TTL_S)])])
        await backend.append([Append("gone", [record("k", "gone", ttl_s=TTL_S)], delay_s=0.05)])
        consumer = await backend.consume("held", member(), Owner())
        taken = await consumer.fetch(9, 0)
        assert await backend.bury_expired() == 0
        await asyncio.sleep(TTL_S + 0.1)  # what is tested is that time passes
        assert await backend.bury_expired() == 3
        assert await backend.bury_expired() == 0
        assert {dead.letter.reason for dead in await backend.dead(None, 9, None)} == {"expired"}
        assert await consumer.settle(taken) == []
        reader = await backend.consume("q", member(), Owner())
        assert texts(await reader.fetch(9, 0)) == ["stays"]
        assert (await backend.depth("gone")).ready == 0


async def test_reply_mailboxes_are_made_by_their_reader_and_end_with_it(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        missing = await backend.append([Append("~reply/1", [record("k"), record("k")]), Append("q", [record("k")])])
        assert [type(problem) for problem in missing.values()] == [QueueMissing, QueueMissing]
        consumer = await backend.consume("~reply/1", member(), Owner())
        await put(other, "~reply/1", "k", "answer")
        assert texts(await consumer.fetch(9, 5)) == ["answer"]
        await consumer.close()
        assert list(await other.append([Append("~reply/1", [record("k")])])) == [0]


async def test_the_catalogue_changes_only_from_the_version_that_was_read(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        assert (await backend.get("agent/a")).version == 0
        results = await asyncio.gather(*(each.put("agent/a", b"1", 0) for each in (backend, other)))
        assert sorted(entry is None for entry in results) == [False, True]
        assert await backend.put("agent/a", b"2", 0) is None
        assert await other.put("agent/a", b"2", 1) is not None
        assert await backend.put("agent/b%", b"3", 0, ttl_s=0.05) is not None
        assert list(await other.scan("agent/")) == ["agent/a", "agent/b%"]
        await asyncio.sleep(0.06)
        assert list(await other.scan("")) == ["agent/a"]
        assert (await other.get("agent/b%")).version == 0
        await put(backend, "q", "k", 1)
        await put(other, "q", "k", 1)
        assert backend.epoch == other.epoch == 3


async def test_notes_reach_those_who_listen_now(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        await backend.publish("c", b"too early")
        assert not await other.listen("c", 0)
        assert not await backend.listen("c", 0)
        heard = [asyncio.create_task(each.listen("c", 5)) for each in (backend, other)]
        await backend.publish("d", b"elsewhere")
        await backend.publish("c", b"now")
        assert await asyncio.gather(*heard) == [[b"now"], [b"now"]]
        assert not await other.listen("c", 0.01)


async def test_another_process_is_woken_within_the_poll(path: Path) -> None:
    async with opened(path) as backend, opened(path) as other:
        consumer = await other.consume("q", member(), Owner())
        waits = []
        for number in range(20):
            fetch = asyncio.create_task(consumer.fetch(9, 5))
            await asyncio.sleep(0.03)
            begun = time.monotonic()
            await put(backend, "q", "k", number)
            taken = await fetch
            waits.append(time.monotonic() - begun)
            await consumer.settle(taken)
        assert sorted(waits)[10] < 0.1


def test_numbered_parameters_are_used_nowhere() -> None:
    """Python 3.12.0 to 3.12.3 warns of each that is given a sequence."""
    root = Path(sqlite.__file__).parents[2]
    sources = [path for path in root.rglob("*.py") if "sqlite" in str(path.relative_to(root))]
    assert sources
    assert not [str(path) for path in sources if re.search(r"\?[0-9]", path.read_text())]
