"""What others do to a Redis that holds our queues: trim, delete, destroy groups, fill the memory, make it a replica.
The same objects go on; what is lost is counted and shown."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path

import pytest

from hivewire.backend import Mode
from hivewire.delivery import Delivery
from hivewire.errors import BackendError, LeaseLost, QueueFull
from hivewire.testing.conformance.scenario import (
    counts,
    drained,
    empty,
    number,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until, until_true
from tests.conformance.backends import RedisFabric
from tests.faults.asking import ask
from tests.faults.load import Load, Seen
from tests.system.commands import Hive

AGENT = "touched"
BOTH = pytest.mark.parametrize("mode", ["ordered", "competing"])


def stream(shard: int, agent: str = AGENT) -> str:
    return f"hivewire:{{{agent}}}:s{shard}"


async def biggest(redis: RedisFabric) -> str:
    """The stream that holds the most."""
    lengths = {stream(shard): await ask(redis, "XLEN", stream(shard)) for shard in range(8)}
    return max(lengths, key=lengths.__getitem__)


@BOTH
@pytest.mark.parametrize("how", ["XTRIM", "XDEL", "DEL"])
async def test_deleted_messages_are_counted_and_told(redis: RedisFabric, mode: Mode, how: str, tmp_path: Path) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    await send_numbered(redis.protocol, AGENT, 5, keys=[f"k{n}" for n in range(8)])
    await take(redis.protocol, AGENT, 3)
    held = (await redis.protocol.depth(AGENT)).ready
    victim = await biggest(redis)
    length = await ask(redis, "XLEN", victim)
    if how == "XTRIM":
        await ask(redis, "XTRIM", victim, "MAXLEN", 1)
        lost = length - 1
    elif how == "XDEL":
        (first, _), *_ = await ask(redis, "XRANGE", victim, "-", "+", "COUNT", 1)
        lost = await ask(redis, "XDEL", victim, first.decode())
    else:
        lost = length
        await redis.protocol.depth(AGENT)  # what a stream held is only known if it was looked at before
        await ask(redis, "DEL", victim)
    depth = await redis.protocol.depth(AGENT)
    assert (depth.ready, depth.lost) == (held - lost, lost)
    assert (await redis.protocol.depth(AGENT)).lost == lost
    assert redis.protocol.metrics().lost == lost
    health = await redis.protocol.health()
    assert any(f"{lost} messages of {AGENT} were deleted by others" in warning for warning in health.warnings)
    told = await asyncio.to_thread(Hive(tmp_path, redis.url), "doctor", "--json")
    found = {finding["check"]: finding for finding in told.json}
    assert found["lost"]["state"] == "bad"
    assert f"{lost} messages were deleted by others" in found["lost"]["detail"]
    # What is left flows, and nothing of it is taken for lost.
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(redis.protocol, AGENT, handle):
        await send_numbered(redis.protocol, AGENT, 1, keys=["late"])
        await empty(redis.protocol, AGENT)
    assert len(seen) == held - lost + 1
    assert (await redis.protocol.depth(AGENT)).lost == lost


@BOTH
async def test_nothing_counts_as_lost_in_a_life_of_retries_deaths_and_expiry(redis: RedisFabric, mode: Mode) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    attempts: Counter[int] = Counter()

    async def handle(delivery: Delivery) -> None:
        n = number(delivery)
        attempts[n] += 1
        if n % 5 == 0 and attempts[n] == 1:
            raise RuntimeError("once more")
        if n % 7 == 0:
            await delivery.reject("no")

    batch = [task(AGENT, n, key=f"k{n % 9}") for n in range(60)]
    batch += [task(AGENT, n, key=f"t{n}", ttl_s=0.05) for n in range(60, 70)]
    await redis.protocol.send_many(batch)
    await redis.protocol.send(task(AGENT, 71), delay_s=0.2)
    await asyncio.sleep(0.1)  # what is tested is that time passes
    async with serving(redis.protocol, AGENT, handle):
        await drained(redis.protocol, AGENT)
        assert await redis.protocol.replay(AGENT) > 0
        await drained(redis.protocol, AGENT)
    await redis.protocol.purge_dead()
    assert (await redis.protocol.depth(AGENT)).lost == 0
    assert redis.protocol.metrics().lost == 0


@pytest.mark.parametrize("how", ["DESTROY", "DELCONSUMER", "SETID"])
async def test_a_group_that_others_touch_hands_out_everything(redis: RedisFabric, how: str) -> None:
    """Also what a member had taken whose name was deleted from the group, and what was skipped."""
    await redis.protocol.subscribe(AGENT, mode="competing")
    members = [await redis.member() for _ in range(2)]
    seen: Counter[int] = Counter()

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.01)
        seen[number(delivery)] += 1

    await redis.protocol.send_many([task(AGENT, n) for n in range(300)])
    held = await take_one(redis.protocol, AGENT)
    async with serving(members[0], AGENT, handle, concurrency=4), serving(members[1], AGENT, handle, concurrency=4):
        await until(lambda: seen.total() > 30, "work goes on")
        await held.nack(delay_s=0.5)
        level = await biggest(redis)  # all are of one priority
        if how == "DESTROY":
            await ask(redis, "XGROUP", "DESTROY", level, "hivewire")
        elif how == "SETID":
            await ask(redis, "XGROUP", "SETID", level, "hivewire", "$")
        else:
            for told in await ask(redis, "XINFO", "CONSUMERS", level, "hivewire"):
                await ask(redis, "XGROUP", "DELCONSUMER", level, "hivewire", told[1].decode())
        await until(lambda: seen.total() > 60 or how == "SETID", "work goes on")
        await members[0].backend.cleanup(None)  # what maintenance does each minute
        await empty(redis.protocol, AGENT)
    assert set(seen) == set(range(300))
    # The group forgets what two members have in hand: what runs, and what was taken ahead (50 ms of handlers).
    assert seen.total() <= 300 + 2 * (4 + 4 * 5)
    assert (await redis.protocol.depth(AGENT)).lost == 0


async def test_after_everything_was_deleted_a_competing_queue_goes_on(redis: RedisFabric) -> None:
    await redis.protocol.subscribe(AGENT, mode="competing")
    member, seen = await redis.member(), Counter[int]()

    async def handle(delivery: Delivery) -> None:
        seen[number(delivery)] += 1

    async with serving(member, AGENT, handle):
        await redis.protocol.send(task(AGENT, 0))
        await until(lambda: seen.total() == 1, "the first one")
        await ask(redis, "FLUSHALL")
        await redis.protocol.send(task(AGENT, 1))
        await until(lambda: seen.total() == 2, "the next one", 5)
    assert (await redis.protocol.subscription(AGENT)).mode == "competing"


@BOTH
async def test_a_server_without_memory_makes_senders_wait_and_lets_workers_work(redis: RedisFabric, mode: Mode) -> None:
    """Leases go on, what waits is handled and settled, retries and dead letters are stored; when there is memory again,
    the sender that waited has its message stored."""
    await redis.protocol.subscribe(AGENT, mode=mode)
    worker = await redis.member(max_attempts=2)
    attempts: Counter[int] = Counter()
    go_on = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        n = number(delivery)
        attempts[n] += 1
        await go_on.wait()
        if n % 3 == 0:
            raise RuntimeError("no")

    async with serving(worker, AGENT, handle, concurrency=8):
        await redis.protocol.send_many([task(AGENT, n, key=f"k{n}") for n in range(24)])
        await until(lambda: attempts.total() >= 8, "it runs")
        await ask(redis, "CONFIG", "SET", "maxmemory-policy", "noeviction")
        await ask(redis, "CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(QueueFull, match="no memory left"):
            await redis.protocol.send(task(AGENT, 99, key="k99"), timeout_s=0.3)
        waiting = asyncio.create_task(redis.protocol.send(task(AGENT, 24, key="k24"), timeout_s=30))
        await asyncio.sleep(2 * redis.lease_s)  # what is tested is that leases do not run out
        go_on.set()
        await until(lambda: attempts.total() >= 32, "all that was stored is handled")
        assert not waiting.done()
        await ask(redis, "CONFIG", "SET", "maxmemory", 0)
        await waiting
        await empty(redis.protocol, AGENT, dead=9)
    assert attempts == {n: 2 if n % 3 == 0 else 1 for n in range(25)}


async def test_a_replica_refuses_and_the_same_objects_go_on_when_it_is_a_master_again(redis: RedisFabric) -> None:
    member = await redis.member()
    load, seen = Load(redis.protocol, AGENT), Seen()
    async with serving(member, AGENT, seen):
        async with load.running():
            await until(lambda: seen.total > 100, "messages flow")
            await ask(redis, "REPLICAOF", "127.0.0.1", "1")
            await until_true(lambda: _is_told_replica(redis), "health tells", 5)
            await ask(redis, "REPLICAOF", "NO", "ONE")
            confirmed, handled = load.total, seen.total
            await until(lambda: load.total > confirmed + 50, "senders go on", 5)
            await until(lambda: seen.total > handled + 50, "the handler goes on", 5)
        await empty(redis.protocol, AGENT)
        assert await _ok(redis)
    seen.check(load)


async def _is_told_replica(redis: RedisFabric) -> bool:
    health = await redis.protocol.health()
    return not health.ok and "is a replica" in health.detail


async def _ok(redis: RedisFabric) -> bool:
    return (await redis.protocol.health()).ok


@BOTH
async def test_a_key_of_another_kind_is_named_and_all_goes_on_without_it(
    redis: RedisFabric, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    seen: Counter[int] = Counter()

    async def handle(delivery: Delivery) -> None:
        seen[number(delivery)] += 1

    async with serving(redis.protocol, AGENT, handle):
        await redis.protocol.send(task(AGENT, 0))
        await empty(redis.protocol, AGENT)
        for shard in range(8):
            await ask(redis, "SET", stream(shard), "somebody's")
        with pytest.raises(BackendError, match=r"WRONGTYPE.*begins with hivewire:"):
            await redis.protocol.send(task(AGENT, 1), timeout_s=0.5)
        with caplog.at_level(logging.WARNING):
            await until(lambda: "cannot take messages yet" in caplog.text, "the reader tells")
        for shard in range(8):
            await ask(redis, "DEL", stream(shard))
        await redis.protocol.send(task(AGENT, 2))
        await until(lambda: seen[2], "the next one is handled", 5)


@BOTH
async def test_scripts_that_the_server_forgets_under_load_are_told_again(redis: RedisFabric, mode: Mode) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    member = await redis.member()
    load, seen = Load(redis.protocol, AGENT), Seen()
    async with serving(member, AGENT, seen):
        async with load.running():
            for _ in range(3):
                handled = seen.total
                await until(lambda handled=handled: seen.total > handled + 60, "messages flow")  # type: ignore[misc]
                await ask(redis, "SCRIPT", "FLUSH")
        await empty(redis.protocol, AGENT)
    assert {key: set(numbers) for key, numbers in seen.numbers.items()} == {
        key: set(numbers) for key, numbers in load.confirmed.items()
    }
    if mode == "ordered":
        seen.check(load)
    assert counts(await redis.protocol.depth(AGENT)) == (0, 0, 0, 0)


async def test_garbage_in_a_shard_is_a_dead_letter_and_the_rest_flows(redis: RedisFabric) -> None:
    for mode, agent in (("ordered", "one"), ("competing", "two")):
        await redis.protocol.subscribe(agent, mode=mode)  # type: ignore[arg-type]  # of the two that there are
        await redis.protocol.send(task(agent, 0))
        await ask(redis, "XADD", stream(3, agent), "*", "what", "ever", "is", "this")
        await ask(redis, "XADD", stream(3, agent), "*", "h", "\x93\x01", "b", "{}")
        await redis.protocol.send(task(agent, 1))
        assert sorted(map(number, await take(redis.protocol, agent, 2))) == [0, 1]
        letters = await redis.protocol.dead_letters(agent)
        assert [letter.reason for letter in letters] == ["malformed", "malformed"]
        assert b"what" in letters[0].raw
        assert (await redis.protocol.depth(agent)).lost == 0


async def test_who_was_told_that_its_lease_is_lost_gets_the_message_again(redis: RedisFabric) -> None:
    """It may have undone what it did. So in the same process, too, the message is no duplicate of what was refused."""
    await redis.protocol.send(task(AGENT, 1), idempotency_key="once")
    stale = await take_one(redis.protocol, AGENT)
    for shard in range(8):
        await ask(redis, "HDEL", f"hivewire:{{{AGENT}}}:o", f"o{shard}")
    with pytest.raises(LeaseLost):
        await stale.ack()
    again = await take_one(redis.protocol, AGENT)
    assert again.message.id == stale.message.id
    await again.ack()
    await empty(redis.protocol, AGENT)
