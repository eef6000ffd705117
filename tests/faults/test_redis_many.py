"""Many agents, many messages, many requests on one Redis; and what is never said to it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import hivewire as hw
from hivewire.backend import Mode
from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.consumer import RedisConsumer
from hivewire.delivery import Delivery
from hivewire.testing.conformance.scenario import counts, drained, empty, number, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import count, until
from hivewire.testing.servers import RedisServer
from tests.conformance.backends import RedisFabric
from tests.faults.asking import ask


async def calls(redis: RedisFabric) -> dict[str, int]:
    told = (await ask(redis, "INFO", "commandstats")).decode()
    return {name: int(number) for name, number in re.findall(r"cmdstat_(\S+?):calls=(\d+)", told)}


async def test_idle_agents_cost_one_script_a_tick_each_and_no_connection(redis: RedisFabric) -> None:
    """Leases are renewed four times in their length, by one script for all shards of an agent; an idle agent is looked
    at again each ten seconds. Four connections of ours for all agents together."""
    agents, lease_s, watched_s = count(200, 1_000), 10.0, 5.0
    member = await redis.member(lease_s=lease_s)

    async def handle(delivery: Delivery) -> None:
        pass

    jobs = [asyncio.create_task(member.serve(f"a{n}", handle)) for n in range(agents)]
    backend = member.backend
    assert isinstance(backend, RedisBackend)
    await until(lambda: _held(backend) == 8 * agents, "all shards are owned", 60)
    clients = (await ask(redis, "INFO", "clients")).decode()
    found = re.search(r"connected_clients:(\d+)", clients)
    assert found is not None
    await asyncio.sleep(6.5)  # the first looks, after 2 and 4 more seconds
    before = await calls(redis)
    await asyncio.sleep(watched_s)  # what is tested is what happens while time passes
    after = await calls(redis)
    spent = {name: (after[name] - before.get(name, 0)) / watched_s / agents for name in after}
    assert spent["evalsha"] <= 1.25 * 4 / lease_s, spent
    assert spent["xread"] <= 0.3, spent
    assert int(found[1]) <= 3 * 2 + 1  # of two members, and who asks
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


def _held(backend: RedisBackend) -> int:
    return sum(len(each.held) for each in backend.consumers if isinstance(each, RedisConsumer))


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_30000_messages_before_the_first_reader(redis: RedisFabric, mode: Mode) -> None:
    """Three times what the reference keeps; depth and age are exact all the way."""
    await redis.protocol.subscribe("late", mode=mode)
    total = 30_000
    each = total // 30
    await send_numbered(redis.protocol, "late", each, keys=[f"k{n}" for n in range(30)])
    depth = await redis.protocol.depth("late")
    assert counts(depth) == (total, 0, 0, 0)
    assert depth.oldest_age_s > 0
    seen: dict[str, list[int]] = {}

    async def handle(delivery: Delivery) -> None:
        seen.setdefault(str(delivery.message.key), []).append(number(delivery))

    async with serving(redis.protocol, "late", handle, concurrency=8):
        await empty(redis.protocol, "late", within_s=60)
    assert sum(map(len, seen.values())) == total
    for numbers in seen.values():
        assert (numbers if mode == "ordered" else sorted(numbers)) == list(range(each))
    assert (await redis.protocol.depth("late")).oldest_age_s == 0


async def test_who_looks_at_one_queue_asks_of_no_other(redis: RedisFabric) -> None:
    """However many queues hold what may expire."""
    agents = [f"a{n}" for n in range(count(200, 1_000))]
    await redis.protocol.send_many([task(agent, ttl_s=600) for agent in agents])
    spent = []
    for _ in range(3):  # upkeep, once a second, does look at all of them
        before = await calls(redis)
        await redis.protocol.depth("a0")
        await redis.protocol.dead_letters("a0")
        after = await calls(redis)
        spent.append(sum(after.values()) - sum(before.values()))
    assert min(spent) < len(agents), spent


async def test_nothing_is_left_of_an_agent_that_is_forgotten(redis: RedisFabric) -> None:
    """What is left of many would be looked at once a second, by every process."""
    await redis.protocol.health()
    before = set(await ask(redis, "KEYS", "*"))
    await redis.protocol.send(task("brief", 1, ttl_s=600))
    await take(redis.protocol, "brief", 1)
    await redis.protocol.send(task("brief", 2, ttl_s=600))
    await redis.protocol.forget("brief")
    assert set(await ask(redis, "KEYS", "*")) - before <= {
        b"hivewire:{catalogue}:epoch",
        b"hivewire:{catalogue}:values",
    }


async def test_many_requests_share_one_mailbox_of_the_process(redis: RedisFabric) -> None:
    async def answer(delivery: Delivery) -> None:
        await redis.protocol.reply(delivery.message, {"n": number(delivery)})

    caller = await redis.member()  # a reply within one process needs no mailbox
    async with serving(redis.protocol, "oracle", answer, concurrency=8):
        asked = [
            caller.request(task("oracle", n, key=f"k{n % 20}", sender=f"caller{n % 50}"), timeout_s=20)
            for n in range(count(200, 5_000))
        ]
        answers = await asyncio.gather(*asked)
    assert [answer.content["n"] for answer in answers] == list(range(len(asked)))
    keys = await ask(redis, "KEYS", "hivewire:{~reply/*")
    assert len({key.split(b"}")[0] for key in keys}) == 1
    streams = [key for key in keys if re.search(rb":s\d+$", key)]
    assert len(streams) == 1


@contextmanager
def monitored(server: RedisServer) -> Iterator[list[str]]:
    """Every command that the server carries out, those of scripts among them."""
    lines: list[str] = []
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"MONITOR\r\n")
        with connection.makefile("r", encoding="latin-1") as said:
            assert said.readline() == "+OK\n"
            reader = threading.Thread(target=lambda: lines.extend(said), daemon=True)
            reader.start()
            yield lines
            connection.shutdown(socket.SHUT_RDWR)
            reader.join(10)


LIMITED = re.compile(r"idem:|:note:")
"""Keys that may end by themselves: idempotency keys and notes with a time to live of their own."""


async def test_nothing_is_trimmed_and_nothing_expires_by_the_server(redis: RedisFabric) -> None:
    """A run of everything there is, with every command looked at."""
    protocol, attempts = redis.protocol, Counter[int]()
    with monitored(redis.server) as said:
        await protocol.subscribe("plain", groups=["team"])
        await protocol.subscribe("pool", mode="competing")

        async def handle(delivery: Delivery) -> None:
            n = number(delivery)
            attempts[n] += 1
            if n % 4 == 0 and delivery.attempt == 1:
                raise RuntimeError("once more")
            if n % 7 == 0:
                raise hw.Reject("no")
            if delivery.message.metadata.get("reply_to"):
                await protocol.reply(delivery.message, n)

        for agent in ("plain", "pool"):
            await send_numbered(protocol, agent, 40, keys=["a", "b"])
            await protocol.send(task(agent, 41, ttl_s=0.05))
            await protocol.send(task(agent, 42), delay_s=0.1)
            await protocol.send(task(agent, 43), idempotency_key="k")
        await asyncio.sleep(0.2)  # so that one runs out unread
        async with serving(protocol, "plain", handle), serving(protocol, "pool", handle):
            await protocol.broadcast(task("", 45), "team")
            await protocol.broadcast(task("", 46), "team", durable=False)
            await protocol.request(task("plain", 47), timeout_s=10)
            worker = await redis.process("plain")
            await send_numbered(protocol, "plain", 20, keys=["c", "d"], steps=[("sleep", 0.02)])
            worker.kill()
            await worker.ended()
            for agent in ("plain", "pool"):
                await drained(protocol, agent)
                assert await protocol.replay(agent) > 0
                await drained(protocol, agent)
        await protocol.once("scope", "key", _effect)
        await protocol.cleanup(0)
        await protocol.purge_dead()
        await take(protocol, "plain", 0)
    assert sum("xadd" in line.lower() for line in said) > 150
    forbidden = re.compile(
        r'"(?:XTRIM|MAXLEN|MINID|P?EXPIRE(?:AT)?|GETEX|SETEX|PSETEX|PX|EX|FLUSHALL|FLUSHDB|EVICT)"', re.IGNORECASE
    )
    wrong = [line for line in said if forbidden.search(_without_values(line)) and not LIMITED.search(line)]
    assert wrong == []


def _without_values(line: str) -> str:
    """Scripts that are loaded speak of commands that they do not give."""
    return "" if '"SCRIPT"' in line or '"script"' in line else line


async def _effect() -> str:
    return "done"
