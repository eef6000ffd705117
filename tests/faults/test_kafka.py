"""Kafka: programs that are not ours, space that is given back, and what a kill repeats behind a handler that lasts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # they are public

from hivewire.backend import Mode
from hivewire.backends.kafka import KafkaBackend, warned
from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.member import Member
from hivewire.delivery import Delivery
from hivewire.errors import ConnectionLost
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import empty, number, one_letter, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import SOAK, count, eventually, until, until_true
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.kafka_fabric import KafkaFabric

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[KafkaFabric]:
    made = KafkaFabric(tmp_path)
    async with nothing_left_behind(), made:
        yield made


def backend_of(fabric: Fabric) -> KafkaBackend:
    assert isinstance(fabric.backend, KafkaBackend)
    return fabric.backend


def consumer_of(protocol: Protocol) -> KafkaConsumer:
    """The only one of its process."""
    (found,) = getattr(protocol, "backend").consumers  # noqa: B009 -- of the engine, not of the contract
    assert isinstance(found, KafkaConsumer)
    return found


def as_the_reference_writes(id: str, n: int) -> bytes:
    return json.dumps(
        {
            "id": id,
            "type": "request",
            "from": "planner",
            "to": "worker",
            "content": {"n": n},
            "metadata": {},
            "created_at": "2025-01-02T03:04:05.000000006Z",
        }
    ).encode()


async def test_messages_of_the_reference_are_handled_all_of_them(fabric: KafkaFabric) -> None:
    """Sent before anybody received, more than a read brings, one of them broken."""
    await fabric.protocol.subscribe("worker")
    producer = Producer({"bootstrap.servers": fabric.broker.address})
    topic = backend_of(fabric).names.topic("worker")
    assert topic.endswith("-worker")
    for n in range(45):
        headers: Any = [("type", "request"), ("from", "planner"), ("to", "worker")]
        producer.produce(topic, as_the_reference_writes(f"r{n}", n), key=str(uuid4()), headers=headers)
    producer.produce(topic, b"{not json", key="x")
    await asyncio.to_thread(producer.flush)
    taken = await take(fabric.protocol, "worker", 45)
    assert sorted(number(delivery) for delivery in taken) == list(range(45))
    assert {(delivery.message.sender, delivery.message.type) for delivery in taken} == {("planner", "request")}
    assert (await fabric.protocol.receive("worker", wait_s=0.2)) == []
    letter = await one_letter(fabric.protocol, "worker")
    assert (letter.reason, letter.raw) == ("malformed", b"{not json")
    await empty(fabric.protocol, "worker", dead=1)


@pytest.mark.parametrize("mode", ["ordered", "competing"])
@pytest.mark.parametrize("after", [1, 4, 9])
async def test_a_topic_that_others_make_anew_is_read_from_its_start(
    fabric: KafkaFabric, mode: Mode, after: int
) -> None:
    """It holds fewer messages than were read of the one before, as many, or more: who reads it stands behind its end,
    or at it, or in its midst. What was committed of the one before does not count."""
    reader, sender = await fabric.member(kafka_num_partitions=1), fabric.protocol
    await reader.subscribe("anew", mode=mode)
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(reader, "anew", handle, concurrency=4):
        for n in range(4):
            await sender.send(task("anew", n))
        await until(lambda: len(seen) == 4, "all of the first topic")
        await empty(sender, "anew")
        topic = backend_of(fabric).names.topic("anew")
        admin = AdminClient({"bootstrap.servers": fabric.broker.address})
        for done in admin.delete_topics([topic]).values():
            await asyncio.wrap_future(done)
        await until(lambda: not (fabric.broker.folder / "data" / f"{topic}-0").exists(), "the broker has deleted it")
        for done in admin.create_topics([NewTopic(topic, 1, 1)]).values():
            await asyncio.wrap_future(done)

        async def is_sent(n: int) -> bool:
            try:
                await sender.send(task("anew", n).replace(id=f"new{n}"))
            except ConnectionLost:
                return False
            return True

        for n in range(10, 10 + after):
            await until_true(lambda n=n: is_sent(n), "it is sent")  # type: ignore[misc]
        await reader.cleanup(3_600)
        await until(lambda: len(set(seen)) == 4 + after, "all of the second topic")
        await empty(sender, "anew")


async def test_a_commit_behind_the_end_hides_no_message(fabric: KafkaFabric) -> None:
    """Somebody has set it by hand, or it is of a log that was longer."""
    before = await fabric.member(kafka_num_partitions=1)
    await before.send(task("far", 1))
    await take(before, "far", 1)
    await empty(before, "far")
    await before.close()
    backend = backend_of(fabric)
    by_hand = Consumer({"bootstrap.servers": fabric.broker.address, "group.id": backend.settings.kafka.group_id})
    at = TopicPartition(backend.names.topic("far"), 0, 1_000)
    await asyncio.to_thread(lambda: by_hand.commit(offsets=[at], asynchronous=False))
    await asyncio.to_thread(by_hand.close)
    member = await fabric.member()
    await member.send(task("far", 2))
    seen = {number(delivery) for delivery in await take(member, "far", 2)}
    assert seen == {1, 2}  # nobody can know any more that the first one was finished
    await empty(member, "far")


async def test_what_others_write_into_the_topics_of_an_installation_is_left_out(fabric: KafkaFabric) -> None:
    """A record that cannot be read stands between two that count, and one stands last."""
    await fabric.protocol.subscribe("before", ["task"])
    await fabric.protocol.send(task("before", 1).replace(type="strange"))
    assert await fabric.protocol.receive("before", wait_s=1.0) == []
    await one_letter(fabric.protocol, "before")
    names = backend_of(fabric).names
    producer = Producer({"bootstrap.servers": fabric.broker.address})

    async def spoil() -> None:
        for topic in (names.catalogue, names.dead):
            for value in (b"not ours", None):
                producer.produce(topic, value, key=b"who knows")
        await asyncio.to_thread(producer.flush)

    await spoil()
    await fabric.protocol.subscribe("after", ["task"])
    await spoil()
    for member in (fabric.protocol, await fabric.member()):
        assert list((await member.subscription("after")).types or ()) == ["task"]
        assert [letter.agent for letter in await member.dead_letters()] == ["before"]
        await member.send(task("after", 2))
        assert len(await take(member, "after", 1)) == 1


async def test_programs_of_the_reference_can_read_ours(fabric: KafkaFabric) -> None:
    sent = Message(type="result", sender="coder", to="reviewer", content={"ok": True}, in_reply_to="before")
    await fabric.protocol.send(sent)
    reader = Consumer(
        {"bootstrap.servers": fabric.broker.address, "group.id": uuid4().hex, "auto.offset.reset": "earliest"}
    )
    reader.subscribe([backend_of(fabric).names.topic("reviewer")])
    found: Any = None
    while found is None:
        found = await asyncio.to_thread(reader.poll, 5.0)
    await asyncio.to_thread(reader.close)
    read = json.loads(found.value())
    assert (read["id"], read["from"], read["to"], read["type"]) == (sent.id, "coder", "reviewer", "result")
    assert (read["in_reply_to"], read["content"]) == ("before", {"ok": True})
    headers = dict(found.headers())
    assert (headers["type"], headers["from"], headers["to"]) == (b"result", b"coder", b"reviewer")


async def test_what_is_finished_and_old_is_deleted_and_nothing_else(fabric: KafkaFabric) -> None:
    member = await fabric.member(dedup_window_s=0.2, idempotency_window_s=0.2)
    await send_numbered(member, "space", 30, keys=["a", "b", "c", "d"])
    await take(member, "space", 120)
    await empty(member, "space")
    await asyncio.sleep(0.5)  # what is tested is that time passes
    await send_numbered(member, "space", 5)
    await member.cleanup(0.2)
    backend = member.backend
    assert isinstance(backend, KafkaBackend)
    topic = backend.names.topic("space")
    firsts = await backend.admin.ends([(topic, n) for n in range(3)], first=True)
    assert sum(firsts.values()) == 120
    assert [number(delivery) for delivery in await take(member, "space", 5)] == [0, 1, 2, 3, 4]


@pytest.mark.timeout(5_400 if SOAK else 120)
async def test_a_kill_repeats_the_long_one_and_not_the_many_behind_it(fabric: KafkaFabric) -> None:
    """With full counts it runs for an hour, through all of which others come and are finished."""
    keys, each, rounds, lasts_s = [f"k{n}" for n in range(8)], count(50, 25), count(1, 50), count(0, 3_600)
    first = await fabric.process("long", concurrency=8, settings={"handler_timeout_s": 7_200})
    await fabric.protocol.send(task("long", -1, ("sleep", 7_000), key="slow"))
    await until(lambda: fabric.journal.starts("long"), "it runs")
    for turn in range(rounds):
        await send_numbered(fabric.protocol, "long", each, keys=keys)
        wanted = (turn + 1) * each * len(keys)
        await until(lambda wanted=wanted: len(fabric.journal.ends("long")) == wanted, "others are done", 60)  # type: ignore[misc]
        await asyncio.sleep(lasts_s / rounds)

    async def left() -> int:
        depth = await fabric.protocol.depth("long")
        return depth.ready + depth.in_flight

    await eventually(left, 1, 20)  # the last of them is committed
    first.kill()
    await first.ended()
    second = await fabric.process("long", concurrency=8)
    await until(lambda: fabric.journal.entries("start", worker=second.name), "it is taken over", 30)
    await send_numbered(fabric.protocol, "long", 1, keys=["after"])
    await until(lambda: any(entry.key == "after" for entry in fabric.journal.ends("long")), "others go on", 30)
    starts = Counter(entry.id for entry in fabric.journal.starts("long"))
    twice = [id for id, times in starts.items() if times > 1]
    assert len(twice) == 1
    (again,) = fabric.journal.entries("start", worker=second.name)[:1]
    assert (again.id, again.attempt) == (twice[0], 2)


async def test_many_topics_are_warned_of(fabric: KafkaFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warned, "_MANY_TOPICS", 2)

    async def warnings() -> list[str]:
        return [warning for warning in (await fabric.protocol.health()).warnings if "topics" in warning]

    for agent in ("one", "two"):
        await fabric.protocol.send(task(agent))
    assert not await warnings()
    await fabric.protocol.send(task("three"))
    (warning,) = await warnings()
    assert warning.startswith("3 topics with the prefix")


async def test_a_partition_whose_state_fills_a_commit_is_not_read_on_and_counted(fabric: KafkaFabric) -> None:
    """Every second handler lasts, so the state names each of them. What comes then waits until they are done."""
    member = await fabric.member(**{"kafka.num_partitions": 1})
    go_on = asyncio.Event()
    handled: Counter[int] = Counter()
    few, late = 1_500, 50

    async def handle(delivery: Delivery) -> None:
        if number(delivery) < few and number(delivery) % 2:
            await go_on.wait()
        handled[number(delivery)] += 1

    def tasks(first: int, end: int) -> list[Message]:
        return [task("full", n, key=f"k{n}") for n in range(first, end)]

    async with serving(member, "full", handle, concurrency=few):
        await member.send_many(tasks(0, few))
        await until(lambda: member.metrics().paused == 1, "the partition pauses", 30)
        await member.send_many(tasks(few, few + late))
        (held,) = consumer_of(member).held.values()
        await until(lambda: held.reached == few + late, "all was read", 30)
        await asyncio.sleep(0.5)  # what is tested is that time passes
        assert not [n for n in handled if n >= few]
        assert sum(handled.values()) <= few // 2
        go_on.set()
        await empty(member, "full", within_s=60)
        assert member.metrics().paused == 0
    assert handled == dict.fromkeys(range(few + late), 1)


async def test_who_joins_with_many_agents_at_once_does_not_wait_for_a_session(fabric: KafkaFabric) -> None:
    """A member that asks for more while the group is giving it a name would get a second one, and everybody would
    wait for the first, here for a minute."""
    for round in range(4):
        member = await fabric.member(lease_s=60)
        async with asyncio.timeout(30):
            await asyncio.gather(*(member.receive(f"{agent}-{round}", wait_s=0.1) for agent in ("one", "two")))
            await fabric.protocol.send(task(f"three-{round}"))
            await take(member, f"three-{round}", 1)
        await member.close()


class Counted:
    """The client of the group, and how often it was asked about topics."""

    def __init__(self, client: Consumer, asked: Counter[str]) -> None:
        self._client = client
        self._asked = asked

    def list_topics(self, *arguments: Any, **how: Any) -> object:
        self._asked["meet"] += 1
        return self._client.list_topics(*arguments, **how)


async def test_a_hundred_agents_that_begin_at_once_are_made_and_met_together(
    fabric: KafkaFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another they would wait for each other's questions, and nothing would be read meanwhile."""
    asked = Counter[str]()
    meet, create = Member._meet, AdminClient.create_topics

    def create_topics(*arguments: Any, **how: Any) -> object:
        asked["make"] += 1
        return create(*arguments, **how)

    monkeypatch.setattr(Member, "_meet", staticmethod(lambda client, topics: meet(Counted(client, asked), topics)))  # type: ignore[arg-type]
    monkeypatch.setattr(AdminClient, "create_topics", create_topics)
    member = await fabric.member()
    agents = [f"many-{n}" for n in range(100)]
    await asyncio.gather(*(member.receive(agent, wait_s=0) for agent in agents))
    assert asked.keys() == {"make", "meet"}
    assert asked["make"] <= 50, asked
    assert asked["meet"] <= 70, asked
    await member.send_many([task(agent, n) for n, agent in enumerate(agents)])
    taken = await asyncio.gather(*(take(member, agent, 1, within_s=30) for agent in agents))
    assert [number(*deliveries) for deliveries in taken] == list(range(100))


async def test_who_begins_with_much_waiting_does_not_wait_for_what_it_does_not_read(
    fabric: KafkaFabric, caplog: pytest.LogCaptureFixture
) -> None:
    """One partition fills what is read ahead, and the ends of the others are not seen before there is room."""
    caplog.set_level(logging.INFO, logger="hivewire.backends.kafka.consumer")
    for agent in ("full-1", "full-2", "full-3"):
        await send_numbered(fabric.protocol, agent, 5_000, keys=["a"])
        await take(await fabric.member(), agent, 1)
    assert "the group has not decided yet" not in caplog.messages
