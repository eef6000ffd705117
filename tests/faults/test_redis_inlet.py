"""Programs of the reference system beside ours on one Redis: raw commands as those programs give them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import hivewire as hw
from hivewire.backend import Mode
from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.address import Reply
from hivewire.backends.redis.link import Link
from hivewire.backends.redis.opening import new_link
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.journal import first_seen
from hivewire.testing.conformance.scenario import empty, nothing_for, number, one_letter, serving, take, task
from hivewire.testing.conformance.waiting import count, eventually, until
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.backends import GUIDE, RedisFabric

AGENT = "analyst"
STREAM = f"multiagent:stream:{AGENT}"


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisFabric]:
    async with nothing_left_behind():
        made = RedisFabric(tmp_path)
        assert made.server.ask("ACL", "SETUSER", "hivewire", *beside_the_reference()) == b"+OK"
        async with made:
            yield made


def beside_the_reference() -> list[str]:
    """The further rights that the guide names."""
    (rules,) = re.findall(r"add\s+`([^`]+)` for programs of the reference", GUIDE.read_text("utf-8"))
    return str(rules).split()


@pytest.fixture
async def theirs(redis: RedisFabric) -> AsyncIterator[Theirs]:
    link = new_link(RedisSettings(addr=f"127.0.0.1:{redis.server.port}"))
    yield Theirs(link)
    await link.close()


class Theirs:
    """A program of the reference: its keys, fields, group and limits."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.max_len = 10_000
        self._consumer = str(uuid4())

    async def ask(self, *command: str | bytes | int) -> Reply:
        return await self._link.call(*command)

    async def send(self, agent: str, n: int, **fields: Any) -> None:
        message = {
            "id": str(uuid4()),
            "type": "task",
            "from": "orchestrator",
            "to": agent,
            "content": {"n": n},
            "metadata": {"attempt": 1},
            "created_at": "2025-03-04T05:06:07.123456789Z",
            **fields,
        }
        await self.add(agent, "message", json.dumps(message), "type", message["type"], "from", message["from"])

    async def send_all(self, agent: str, numbers: Iterable[int]) -> None:
        for n in numbers:
            await self.send(agent, n)

    async def add(self, agent: str, *fields: str | bytes) -> None:
        stream = f"multiagent:stream:{agent}"
        trim = ("MAXLEN", "=" if self.max_len < 100 else "~", self.max_len)
        await self.ask("XADD", stream, *trim, "*", *fields)
        await self.ask("EXPIRE", stream, 86_400)

    async def receive(self, agent: str) -> list[dict[str, Any]]:
        """One read of at most ten, acknowledged at once, as they do."""
        stream = f"multiagent:stream:{agent}"
        with suppress(BackendError):  # BUSYGROUP: it is there
            await self.ask("XGROUP", "CREATE", stream, "multiagent", "0", "MKSTREAM")
        read = ("XREADGROUP", "GROUP", "multiagent", self._consumer, "COUNT", 10, "STREAMS", stream, ">")
        got = []
        for _, entries in await self.ask(*read) or ():
            for id, flat in entries:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                assert set(fields) == {b"message", b"type", b"from"}
                message = json.loads(fields[b"message"])
                assert (message["type"], message["from"]) == (fields[b"type"].decode(), fields[b"from"].decode())
                got.append(message)
                await self.ask("XACK", stream, "multiagent", id)
        return got


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_what_they_send_is_handled_once_and_in_order(redis: RedisFabric, theirs: Theirs, mode: Mode) -> None:
    await redis.protocol.subscribe(AGENT, mode=mode)
    seen: list[hw.Message] = []
    await theirs.send_all(AGENT, range(300))  # before anybody of ours reads

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.message)

    members = [await redis.member() for _ in range(2)]
    async with serving(members[0], AGENT, handle), serving(members[1], AGENT, handle):
        await theirs.send_all(AGENT, range(300, 500))
        await until(lambda: len(seen) >= 500, "all are handled")
        await empty(redis.protocol, AGENT)
    numbers = [message.content["n"] for message in seen]
    assert sorted(numbers) == list(range(500))
    if mode == "ordered":
        assert numbers == sorted(numbers)
    message = seen[0]
    assert (message.type, message.sender, message.to, message.metadata) == (
        "task",
        "orchestrator",
        AGENT,
        {"attempt": 1},
    )
    assert message.created_at.isoformat() == "2025-03-04T05:06:07.123457+00:00"


async def test_an_agent_that_moves_to_ours_handles_nothing_again(redis: RedisFabric, theirs: Theirs) -> None:
    """Ours begin behind what the group of their readers has acknowledged, and nothing of it passes for lost."""
    await theirs.send_all(AGENT, range(25))
    assert len(await theirs.receive(AGENT)) + len(await theirs.receive(AGENT)) == 20
    assert [number(delivery) for delivery in await take(redis.protocol, AGENT, 5)] == list(range(20, 25))
    await theirs.send_all(AGENT, range(25, 28))
    assert [number(delivery) for delivery in await take(redis.protocol, AGENT, 3)] == [25, 26, 27]
    assert len(await theirs.receive(AGENT)) == 8  # theirs miss nothing by it
    assert (await redis.protocol.depth(AGENT)).lost == 0


async def test_what_their_readers_have_not_acknowledged_is_taken(redis: RedisFabric, theirs: Theirs) -> None:
    await theirs.send_all(AGENT, range(20))
    await theirs.receive(AGENT)
    await theirs.ask("XREADGROUP", "GROUP", "multiagent", "dead", "COUNT", 5, "STREAMS", STREAM, ">")
    assert [number(delivery) for delivery in await take(redis.protocol, AGENT, 10)] == list(range(10, 20))
    assert (await redis.protocol.depth(AGENT)).lost == 0


async def test_the_group_of_their_readers_is_a_setting(redis: RedisFabric, theirs: Theirs) -> None:
    await theirs.send_all(AGENT, range(10))
    await theirs.receive(AGENT)
    member = await redis.member(redis={"consumer_group": "others"})
    assert [number(delivery) for delivery in await take(member, AGENT, 10)] == list(range(10))


async def test_their_keys_are_theirs_but_do_not_expire_unread(redis: RedisFabric, theirs: Theirs) -> None:
    await theirs.send(AGENT, 1)
    assert await theirs.ask("TTL", STREAM) > 0
    await take(redis.protocol, AGENT, 1)
    assert await theirs.ask("XLEN", STREAM) == 1  # left to their own readers
    assert await theirs.ask("TTL", STREAM) == -1
    await theirs.send(AGENT, 2)
    await take(redis.protocol, AGENT, 1)
    assert await theirs.ask("TTL", STREAM) == -1
    assert [message["content"]["n"] for message in await theirs.receive(AGENT)] == [1, 2]
    groups = {group[1]: group for group in await theirs.ask("XINFO", "GROUPS", STREAM)}
    assert set(groups) == {b"hivewire", b"multiagent"}


async def test_what_cannot_be_read_is_a_dead_letter_with_its_bytes(redis: RedisFabric, theirs: Theirs) -> None:
    await theirs.add(AGENT, "message", b'{"id": "broken\xff', "type", "task", "from", "x")
    await theirs.send(AGENT, 1)
    assert number((await take(redis.protocol, AGENT, 1))[0]) == 1
    await nothing_for(redis.protocol, AGENT)
    letter = await one_letter(redis.protocol, AGENT)
    assert (letter.reason, letter.raw, letter.attempts) == ("malformed", b'{"id": "broken\xff', 0)
    await theirs.add(AGENT, "something", "else")
    await nothing_for(redis.protocol, AGENT, 1.0)
    letters = await redis.protocol.dead_letters(AGENT)
    assert [letter.reason for letter in letters] == ["malformed", "malformed"]
    assert letters[1].raw == b"something\nelse"


async def test_what_they_trim_before_it_is_read_is_counted(redis: RedisFabric, theirs: Theirs) -> None:
    theirs.max_len = 10
    await theirs.send_all(AGENT, range(3))
    member = await redis.member()
    await take(member, AGENT, 3)
    await member.close(0.5)
    await theirs.send_all(AGENT, range(3, 53))
    assert [number(delivery) for delivery in await take(redis.protocol, AGENT, 10)] == list(range(43, 53))
    assert (await redis.protocol.depth(AGENT)).lost == 40
    assert redis.protocol.metrics().lost == 40
    assert any(f"40 messages of {AGENT}" in warning for warning in (await redis.protocol.health()).warnings)
    await theirs.send(AGENT, 53)
    await take(redis.protocol, AGENT, 1)
    assert (await redis.protocol.depth(AGENT)).lost == 40


async def test_a_stream_that_was_deleted_is_read_from_its_new_start(redis: RedisFabric, theirs: Theirs) -> None:
    await theirs.send_all(AGENT, range(3))
    await take(redis.protocol, AGENT, 3)
    await theirs.ask("DEL", STREAM)
    await theirs.send_all(AGENT, range(3, 5))
    assert [number(delivery) for delivery in await take(redis.protocol, AGENT, 2)] == [3, 4]


async def test_workers_that_die_lose_and_double_nothing_of_theirs(redis: RedisFabric, theirs: Theirs) -> None:
    total = count(600, 21_000)
    settings = {"max_attempts": 100}
    worker = await redis.process(AGENT, concurrency=4, settings=settings)
    dead = []
    for first in range(0, total, total // 3):
        handled = len(redis.journal.ends(AGENT))
        sending = asyncio.create_task(theirs.send_all(AGENT, range(first, first + total // 3)))
        await until(lambda handled=handled: len(redis.journal.ends(AGENT)) > handled + 40, "work goes on")  # type: ignore[misc]
        worker.kill()
        await worker.ended()
        dead.append(worker.name)
        await sending
        worker = await redis.process(AGENT, concurrency=4, settings=settings)
    await until(lambda: len({entry.n for entry in redis.journal.ends(AGENT)}) == total, "all are handled", 30)
    await empty(redis.protocol, AGENT)
    assert first_seen(redis.journal.starts(AGENT)) == {"orchestrator": list(range(total))}
    alive = [entry.id for entry in redis.journal.ends(AGENT) if entry.worker not in dead]
    assert len(alive) == len(set(alive))
    assert (await redis.protocol.depth(AGENT)).lost == 0


async def test_what_nobody_subscribed_of_theirs_is_a_dead_letter(redis: RedisFabric, theirs: Theirs) -> None:
    await redis.protocol.subscribe(AGENT, ["query"])
    await theirs.send(AGENT, 1)
    await nothing_for(redis.protocol, AGENT, 1.0)
    assert (await one_letter(redis.protocol, AGENT)).reason == "unsubscribed"


async def test_their_broadcast_reaches_our_members_that_live(redis: RedisFabric, theirs: Theirs) -> None:
    await redis.protocol.subscribe("one", groups=["team"])
    await redis.protocol.subscribe("two", groups=["team"])
    seen: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> None:
        seen.append((delivery.message.to, number(delivery)))

    said = {"id": str(uuid4()), "type": "inform", "from": "boss", "to": "", "content": {"n": 7}}
    async with serving(redis.protocol, "one", handle), serving(redis.protocol, "two", handle):
        for member in ("one", "two"):
            await redis.protocol.send(task(member, 1))
        await until(lambda: len(seen) == 2, "both are there")
        await eventually(lambda: _listeners(theirs), 1, 5)
        await theirs.ask("PUBLISH", "multiagent:broadcast:team", json.dumps(said))
        await until(lambda: len(seen) == 4, "both have it")
    assert sorted(seen[2:]) == [("one", 7), ("two", 7)]


async def _listeners(theirs: Theirs, channel: str = "multiagent:broadcast:team") -> int:
    return int((await theirs.ask("PUBSUB", "NUMSUB", channel))[1])


@pytest.fixture
async def open_to_all(redis: RedisFabric) -> Engine:
    """A member of ours that sends where their programs read."""
    return await redis.member(redis={"interop": True})


async def test_their_programs_read_what_ours_send(redis: RedisFabric, theirs: Theirs, open_to_all: Engine) -> None:
    sent = [task("coder", n, key="k", priority=8) for n in range(12)]
    await open_to_all.send(sent[0])
    await open_to_all.send_many(sent[1:])
    got = await theirs.receive("coder") + await theirs.receive("coder")
    assert [message["content"]["n"] for message in got] == list(range(12))
    assert [message["id"] for message in got] == [message.id for message in sent]
    assert {(message["from"], message["to"], message["type"]) for message in got} == {("tester", "coder", "task")}
    assert await theirs.ask("XPENDING", "multiagent:stream:coder", "multiagent") == [0, None, None, None]
    assert (await open_to_all.depth("coder")).ready == 0  # nothing piles up where nobody of ours reads


async def test_their_coordinator_and_our_worker(redis: RedisFabric, theirs: Theirs, open_to_all: Engine) -> None:
    """A task of theirs is handled here, and its result is read there."""

    async def handle(delivery: Delivery) -> None:
        task = delivery.message
        answer = hw.Message(
            type="result", sender=AGENT, to=task.sender, in_reply_to=task.id, content={"double": 2 * task.content["n"]}
        )
        await open_to_all.send(answer)

    async with serving(open_to_all, AGENT, handle):
        await theirs.send(AGENT, 21, id="t-1")
        results: list[dict[str, Any]] = []
        while not results:
            results += await theirs.receive("orchestrator")
            await asyncio.sleep(0.01)
    assert [(result["in_reply_to"], result["content"]) for result in results] == [("t-1", {"double": 42})]


async def test_ours_that_are_open_to_all_reach_ours(redis: RedisFabric, theirs: Theirs, open_to_all: Engine) -> None:
    """With order, priority, retry, delay, idempotency and request: whoever reads."""
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(number(delivery))
        if number(delivery) == 5 and delivery.attempt == 1:
            raise RuntimeError("once more")
        if delivery.message.metadata.get("reply_to"):
            await redis.protocol.reply(delivery.message, {"n": -1})

    async with serving(redis.protocol, AGENT, handle):
        for n in range(10):
            await open_to_all.send(task(AGENT, n, key="k"))
        await open_to_all.send(task(AGENT, 10), delay_s=0.1)
        for _ in range(2):
            await open_to_all.send(task(AGENT, 11), idempotency_key="once")
        answer = await open_to_all.request(task(AGENT, 12), timeout_s=10)
        assert answer.content == {"n": -1}
        await until(lambda: len(attempts) >= 14, "all are handled")
        await empty(redis.protocol, AGENT)
    assert [n for n in attempts if n < 10] == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert sorted(attempts) == sorted([*range(13), 5])


@pytest.mark.parametrize("durable", [True, False])
async def test_our_broadcast_reaches_theirs_and_each_of_ours_once(
    redis: RedisFabric, theirs: Theirs, open_to_all: Engine, durable: bool
) -> None:
    await redis.protocol.subscribe("one", groups=["team"])
    backend = redis.backend
    assert isinstance(backend, RedisBackend)
    heard: list[bytes] = []
    await backend.ears.subscribe("multiagent:broadcast:team", lambda body: heard.append(body) if body else None)
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(redis.protocol, "one", handle):
        await eventually(lambda: _listeners(theirs, "hivewire:channel:group/team"), 1, 5)
        for n in range(5):
            await open_to_all.broadcast(task("", n), "team", durable=durable)
        await until(lambda: len(seen) >= 5, "ours have it")
        await until(lambda: len(heard) >= 5, "theirs have it")
        await asyncio.sleep(0.3)  # what is tested is that nothing more comes
    assert sorted(seen) == list(range(5))
    assert [json.loads(body)["content"]["n"] for body in heard] == list(range(5))


async def test_the_inlet_can_be_shut(redis: RedisFabric, theirs: Theirs) -> None:
    shut = await redis.member(redis={"inlet": False})
    await theirs.send(AGENT, 1)
    await nothing_for(shut, AGENT, 1.0)
    assert number((await take(redis.protocol, AGENT, 1))[0]) == 1
