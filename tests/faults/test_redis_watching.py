"""Reads that wait in the server, and bells where they do not: whichever it is, nothing is found by looking alone."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

import pytest

from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.consumer import RedisConsumer
from hivewire.backends.redis.keys import bell, news
from hivewire.codec import encode
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import Reject
from hivewire.testing.conformance.scenario import drained, empty, number, serving, task
from hivewire.testing.conformance.waiting import count, until, until_true
from hivewire.testing.redis_groups import say
from tests.conformance.backends import RedisFabric
from tests.faults.load import KEYS, Load, Seen

NEVER = {"redis": {"block_timeout_s": 60.0}, "lease_s": 30.0}
"""Nobody looks by himself while a test lasts."""


def waiting(redis: RedisFabric) -> list[str]:
    """The numbers of connections on which a read waits in the server."""
    listed: str = say(redis.server, "CLIENT", "LIST")
    return re.findall(r"^id=(\d+) .* flags=b ", listed, re.MULTILINE)


def listeners(redis: RedisFabric, channel: str) -> int:
    return int(say(redis.server, "PUBSUB", "NUMSUB", channel)[1])


async def one_by_one(redis: RedisFabric, agent: str, seen: Seen, numbers: range, key: str = "k0") -> None:
    """Each is handled before the next is sent: none is found because another one came."""
    for n in numbers:
        await redis.protocol.send(task(agent, n, key=key))
        await until(lambda n=n: seen.numbers[key][-1:] == [n], f"message {n} is handled", 20)  # type: ignore[misc]


async def test_few_queues_are_read_by_waiting_and_many_by_bells(redis: RedisFabric) -> None:
    """Also while one becomes the other."""
    member, seen = await redis.member(**NEVER), Seen()
    async with serving(member, "few", seen):
        await one_by_one(redis, "few", seen, range(5))
        assert (listeners(redis, bell("few")), listeners(redis, news("few"))) == (0, 1)
        await until(lambda: len(waiting(redis)) == 1, "a read waits")
        async with AsyncExitStack() as stack:
            for n in range(5):
                await stack.enter_async_context(serving(member, f"other-{n}", Seen()))
            await one_by_one(redis, "few", seen, range(5, 10))
            await until(lambda: listeners(redis, bell("few")) == 1, "it listens to the bell")
            await one_by_one(redis, "few", seen, range(10, 15))
        await one_by_one(redis, "few", seen, range(15, 20))
        await until(lambda: listeners(redis, bell("few")) == 0, "it waits again")
        await one_by_one(redis, "few", seen, range(20, 25))
    assert seen.numbers["k0"] == list(range(25))


@pytest.mark.parametrize("queues", [1, 6], ids=["waiting", "bells"])
async def test_members_come_and_go(redis: RedisFabric, queues: int) -> None:
    """Shards move under load; what comes in a shard that was just gained is read."""
    first, second = await redis.member(**NEVER), await redis.member(**NEVER)
    seen, load = Seen(), Load(redis.protocol, "moves")
    async with AsyncExitStack() as stack:
        for member in (first, second):
            for n in range(queues - 1):
                await stack.enter_async_context(serving(member, f"other-{n}", Seen()))
        await stack.enter_async_context(serving(first, "moves", seen, concurrency=8))
        async with load.running():
            for _ in range(count(3, 30)):
                total = seen.total
                async with serving(second, "moves", seen, concurrency=8):
                    await until(lambda: _held(second, "moves") == 4, "half of the shards", 20)
                    await until(lambda total=total: seen.total > total + 100, "work goes on", 20)  # type: ignore[misc]
        await empty(redis.protocol, "moves", within_s=20)
    seen.check(load)


async def test_a_shard_that_was_gained_while_a_read_waits_is_read(redis: RedisFabric) -> None:
    first, second, seen = await redis.member(**NEVER), await redis.member(**NEVER), Seen()
    moving: list[str] = []

    async def noting(delivery: Delivery) -> None:
        moving.append(str(delivery.message.key))
        await seen(delivery)

    async with serving(first, "gained", seen):
        async with serving(second, "gained", noting):
            await until(lambda: _held(second, "gained") == 4, "half of the shards", 20)
            for key in KEYS:  # now each waits for its own half
                await one_by_one(redis, "gained", seen, range(2), key)
        await until(lambda: _held(first, "gained") == 8, "all shards", 20)
        await until(lambda: len(waiting(redis)) == 1, "a read waits")
        for key in dict.fromkeys(moving):
            await one_by_one(redis, "gained", seen, range(2, 4), key)
        await until(lambda: len(waiting(redis)) == 1, "a read waits again")
        before = _reads(redis)
        await asyncio.sleep(0.5)  # what is tested is that nothing happens while nothing comes
        assert _reads(redis) - before <= 2


def _reads(redis: RedisFabric) -> int:
    found = re.search(r"cmdstat_xread:calls=(\d+)", say(redis.server, "INFO", "commandstats"))
    return int(found[1]) if found is not None else 0


_ADD = "return redis.call('XADD', KEYS[1], '*', 'h', cmsgpack.pack(cjson.decode(ARGV[1])), 'b', ARGV[2])"


async def test_what_was_taken_away_in_front_of_a_waiting_read_is_not_handed_out(redis: RedisFabric) -> None:
    """The server has answered, and the answer is on its way, when somebody finds the record unread and removes it."""
    member = await redis.member(**NEVER)
    backend = member.backend
    assert isinstance(backend, RedisBackend)
    seen = Seen()
    async with serving(member, "taken", seen):
        await until(lambda: len(waiting(redis)) == 1, "a read waits")
        (consumer,) = [each for each in backend.consumers if isinstance(each, RedisConsumer)]
        stream = consumer.names.stream(3)
        async with consumer.still():
            body = encode(task("taken", 7, key="k7"), 1_000_000).decode()
            head = '["an id","k7","task","tester",null,5,0]'
            id = say(redis.server, "EVAL", _ADD, "1", stream, head, body)
            assert consumer.unread(3, id.encode()) is consumer.held[3]
            await until(lambda: not waiting(redis), "the read has its answer")
            await asyncio.sleep(0.05)  # and the answer is here
            assert say(redis.server, "XDEL", stream, id) == 1
        await redis.protocol.send(task("taken", 1, key="k0"))
        await until(lambda: seen.total, "the next one is handled")
    assert seen.numbers["k0"] == [1]
    assert seen.total == 1


def _held(member: Engine, agent: str) -> int:
    backend = member.backend
    assert isinstance(backend, RedisBackend)
    owned = [each for each in backend.consumers if each.queue == agent and isinstance(each, RedisConsumer)]
    return sum(len(each.held) for each in owned)


async def test_connections_that_wait_are_cut(redis: RedisFabric) -> None:
    """The consumer listens to bells then, and waits again later; nothing is missed in between."""
    member, seen, load = await redis.member(**NEVER), Seen(), Load(redis.protocol, "cut")
    async with serving(member, "cut", seen, concurrency=8):
        async with load.running():
            for _ in range(count(5, 50)):
                await until_true(lambda: asyncio.to_thread(_cut, redis), "one waits, and is cut", 20)
                total = seen.total
                await until(lambda total=total: seen.total > total + 50, "work goes on", 20)  # type: ignore[misc]
        await empty(redis.protocol, "cut", within_s=20)
        async with load.running():
            pass
        await until(lambda: seen.lost(load) == [], "what came last", 20)
    seen.check(load)


async def test_where_no_further_connection_is_to_be_had_bells_do(redis: RedisFabric) -> None:
    member, seen = await redis.member(**NEVER), Seen()
    await redis.protocol.send(task("full", 0, key="k0"))
    async with serving(member, "other", Seen()):
        await until(lambda: len(waiting(redis)) == 1, "all connections but one are there")
        listed: str = say(redis.server, "CLIENT", "LIST")
        say(redis.server, "CONFIG", "SET", "maxclients", str(len(listed.splitlines()) - 1))  # who asks has gone then
        async with serving(member, "full", seen):
            for n in range(1, 20):
                await redis.protocol.send(task("full", n, key="k0"))
                await until(lambda n=n: seen.numbers["k0"][-1:] == [n], f"message {n} is handled", 20)  # type: ignore[misc]
            assert seen.numbers["k0"] == list(range(20))


def _cut(redis: RedisFabric) -> bool:
    cut = [say(redis.server, "CLIENT", "KILL", "ID", client) for client in waiting(redis)]
    return bool(cut)


async def test_what_expires_while_a_read_waits_is_handled_or_buried_never_both(redis: RedisFabric) -> None:
    """Whoever looks for what has expired takes it from what the read has found and nobody has had."""
    member = await redis.member(lease_s=30.0)
    handled: list[int] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(number(delivery))
        await asyncio.sleep(0.002)
        if number(delivery) % 50 == 0:
            raise Reject("no")

    total = count(400, 4_000)
    async with serving(member, "short", handle):
        for n in range(total):
            await redis.protocol.send(task("short", n, key=f"k{n % 3}", ttl_s=0.02 if n % 2 else None))
            if n % 20 == 0:
                await member.dead_letters("short")  # looks what has expired, too
        await drained(redis.protocol, "short")
    letters = [letter for letter in await redis.protocol.dead_letters("short", limit=2 * total) if letter.message]
    expired = [letter.message.content["n"] for letter in letters if letter.reason == "expired" and letter.message]
    assert sorted(handled + expired) == list(range(total))


async def test_answers_to_requests_are_waited_for_however_many_queues_there_are(redis: RedisFabric) -> None:
    caller, worker = await redis.member(**NEVER), await redis.member(**NEVER)

    async def answer(delivery: Delivery) -> None:
        await worker.reply(delivery.message, {"n": number(delivery)})

    async with AsyncExitStack() as stack:
        for n in range(6):
            await stack.enter_async_context(serving(caller, f"own-{n}", Seen()))
        await stack.enter_async_context(serving(worker, "oracle", answer))
        for n in range(20):
            assert (await caller.request(task("oracle", n), timeout_s=20)).content == {"n": n}
        await until(lambda: len(waiting(redis)) == 2, "the caller's mailbox and the worker's queue are waited for")


async def test_a_member_that_is_abandoned_ends_and_leaves_nothing_open(redis: RedisFabric) -> None:
    member, began = await redis.member(lease_s=2.0), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        began.set()
        await asyncio.Event().wait()

    served = asyncio.create_task(member.serve("left", handle))
    await redis.protocol.send(task("left", 1, key="k0"))
    await asyncio.wait_for(began.wait(), 20)
    member.abandon()
    await asyncio.wait_for(asyncio.gather(served, return_exceptions=True), 20)
    await member.close()
    await until(lambda: not waiting(redis), "no connection waits any more", 20)
    seen = Seen()
    async with serving(redis.protocol, "left", seen):
        await until(lambda: seen.numbers["k0"] == [1], "somebody else has it", 30)
