"""Delivery: each message reaches a handler of its agent, as it was sent, and is acknowledged after."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import AlreadySettled, Closed, LeaseLost
from hivewire.message import UNORDERED, Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    empty,
    holds,
    nothing_for,
    number,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, eventually, until

CONTENTS: dict[str, Any] = {
    "none": None,
    "empty-text": "",
    "text": "grüße \u0000 \u2028 𝄞",
    "empty-bytes": b"",
    "one-byte": b"\x00",
    "not-utf8": bytes(range(256)),
    "bytes-1mb": b"\xff\x00" * 524_288,
    "text-1mb": "x" * 1_048_574,
    "object": {"a": [1, 2.5, True, None, {"ü": "\n"}], "": {}},
    "list": [],
    "zero": 0,
    "false": False,
    "largest-int": 2**63 - 1,
    "smallest-int": -(2**63),
    "float": 1e-300,
}


@pytest.mark.parametrize("name", sorted(CONTENTS))
async def test_every_field_arrives_as_it_was_sent(fabric: Fabric, name: str) -> None:
    sent = Message(
        type="über-type",
        sender="me",
        to="echo/inst 1",
        content=CONTENTS[name],
        id="foreign id: 7",
        key="a key",
        in_reply_to="another",
        metadata={"trace": "00-ab", "n": {"deep": [1]}},
        created_at=datetime(2025, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC),
        ttl_s=3600.0,
        priority=8,
        extra={"x_later": {"field": [1, 2]}},
    )
    receipt = await fabric.protocol.send(sent)
    assert receipt.id == sent.id
    (delivery,) = await take(fabric.protocol, "echo", 1)
    assert delivery.message == sent
    assert type(delivery.message.content) is type(sent.content)
    assert delivery.attempt == 1
    await empty(fabric.protocol, "echo")


async def test_unknown_fields_survive_a_forward(fabric: Fabric) -> None:
    await fabric.protocol.send(task("first", extra={"x_later": 5}))
    (received,) = await take(fabric.protocol, "first", 1)
    await fabric.protocol.send(received.message.replace(to="second"))
    (forwarded,) = await take(fabric.protocol, "second", 1)
    assert forwarded.message.extra == {"x_later": 5}


async def test_sent_before_the_first_consumer_exists(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "later", 20)
    consumer = await fabric.member()
    assert [number(delivery) for delivery in await take(consumer, "later", 20)] == list(range(20))


async def test_changes_after_send_are_not_seen(fabric: Fabric) -> None:
    content: dict[str, Any] = {"items": [1]}
    metadata: dict[str, Any] = {"tag": ["a"]}
    sending = asyncio.ensure_future(
        fabric.protocol.send(Message(type="task", sender="me", to="copy", content=content, metadata=metadata))
    )
    await sending
    content["items"].append(2)
    metadata["tag"].append("b")
    (delivery,) = await take(fabric.protocol, "copy", 1)
    assert delivery.message.content == {"items": [1]}
    assert delivery.message.metadata == {"tag": ["a"]}


async def test_changes_by_one_attempt_are_not_seen_by_the_next(fabric: Fabric) -> None:
    await fabric.protocol.send(task("copy", 1))
    first = await take_one(fabric.protocol, "copy")
    first.message.content["n"] = 99
    first.message.metadata["dirt"] = True
    await first.nack(delay_s=0)
    second = await take_one(fabric.protocol, "copy")
    assert (number(second), second.message.metadata) == (1, {})
    await second.ack()


async def test_concurrent_senders_and_receivers_handle_each_once(fabric: Fabric) -> None:
    each = count(100, 1000)
    senders = [await fabric.member() for _ in range(5)]
    receivers = [await fabric.member() for _ in range(3)]
    seen: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> None:
        seen.append((delivery.message.sender, number(delivery)))

    async def send(sender: int) -> None:
        for n in range(each):
            await senders[sender].send(task("all", n, sender=f"s{sender}", key=f"{sender}-{n % 7}"))

    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(receiver.serve("all", handle, concurrency=4)) for receiver in receivers]
        await asyncio.gather(*(send(sender) for sender in range(5)))
        await empty(fabric.protocol, "all", within_s=40)
        for job in jobs:
            job.cancel()
    assert sorted(seen) == [(f"s{sender}", n) for sender in range(5) for n in range(each)]


async def test_many_agents_get_only_their_own(fabric: Fabric) -> None:
    agents = [f"agent-{number}" for number in range(count(20, 200))]
    await fabric.protocol.send_many([task(agent, n, key=UNORDERED) for n in range(5) for agent in agents])

    async def check(agent: str) -> None:
        taken = await take(fabric.protocol, agent, 5)
        assert {delivery.message.to for delivery in taken} == {agent}
        assert sorted(number(delivery) for delivery in taken) == [0, 1, 2, 3, 4]

    await asyncio.gather(*(check(agent) for agent in agents))


async def test_several_members_share_and_none_starves(fabric: Fabric) -> None:
    """Where members join slowly in rounds, because who joins last may come too late for the first; elsewhere in one."""
    workers = [await fabric.inside("shared", concurrency=2) for _ in range(3)]
    shares = [0]
    for round in range(1, 21 if fabric.joins_slowly else 2):
        steps = [("sleep", 0.02)]
        await send_numbered(fabric.protocol, "shared", 2, keys=[f"k{n}" for n in range(60)], steps=steps)
        await until(lambda all=120 * round: len(fabric.journal.ends()) >= all, "all handled", 30)  # type: ignore[misc]
        shares = [len(fabric.journal.entries("end", worker=worker.name)) for worker in workers]
        if min(shares) > 0:
            break
    assert min(shares) > 0, shares


async def test_competing_members_share_one_key(fabric: Fabric) -> None:
    for _ in range(2):
        await (await fabric.member()).subscribe("pool", mode="competing")
    workers = [await fabric.inside("pool") for _ in range(2)]
    await send_numbered(fabric.protocol, "pool", 40, steps=[("sleep", 0.02)])
    await until(lambda: len(fabric.journal.ends()) >= 40, "all handled", 30)
    assert min(len(fabric.journal.entries("end", worker=worker.name)) for worker in workers) > 0
    assert len({entry.n for entry in fabric.journal.ends()}) == 40


async def test_receive_gives_at_most_one_message_of_each_key(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "keys", 3, keys=["a", "b", "c"])
    first: list[Delivery] = []
    while len(first) < 3:
        first += await fabric.protocol.receive("keys", limit=10, wait_s=2)
    assert sorted((str(delivery.message.key), number(delivery)) for delivery in first) == [("a", 0), ("b", 0), ("c", 0)]
    await nothing_for(fabric.protocol, "keys")
    for delivery in first:
        await delivery.ack()
    assert len(await take(fabric.protocol, "keys", 6)) == 6


async def test_receive_respects_its_limit_and_its_wait(fabric: Fabric) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await fabric.protocol.receive("limit", wait_s=0.3) == []
    assert 0.2 <= loop.time() - began < 3.0
    await send_numbered(fabric.protocol, "limit", 1, keys=[f"k{n}" for n in range(30)])
    got = await fabric.protocol.receive("limit", limit=4, wait_s=2)
    assert 1 <= len(got) <= 4
    for delivery in got:
        await delivery.ack()
    await take(fabric.protocol, "limit", 30 - len(got))


async def test_a_waiting_receive_wakes_when_something_comes(fabric: Fabric) -> None:
    other = await fabric.member()
    waiting = asyncio.create_task(other.receive("wake", wait_s=10))
    await until_waiting(waiting)
    began = asyncio.get_running_loop().time()
    await fabric.protocol.send(task("wake"))
    (delivery,) = await waiting
    assert asyncio.get_running_loop().time() - began < 2.0
    await delivery.ack()


async def until_waiting(job: asyncio.Task[Any]) -> None:
    """Give a task a number of turns of the loop to come to its first wait."""
    for _ in range(50):
        await asyncio.sleep(0)
    assert not job.done()


async def test_consume_goes_on_for_ever(fabric: Fabric) -> None:
    seen: list[int] = []

    async def consume() -> None:
        async for delivery in fabric.protocol.consume("stream", prefetch=5):
            async with delivery:
                seen.append(number(delivery))

    job = asyncio.create_task(consume())
    for n in range(10):
        await fabric.protocol.send(task("stream", n))
        await until(lambda n=n: len(seen) == n + 1, "the next one")  # type: ignore[misc]
    job.cancel()
    await asyncio.wait([job])
    assert seen == list(range(10))
    await empty(fabric.protocol, "stream")


async def test_exactly_one_settlement_takes_effect(fabric: Fabric) -> None:
    await fabric.protocol.send(task("once"))
    delivery = await take_one(fabric.protocol, "once")
    settled = [delivery.settled]
    await delivery.ack()
    settled.append(delivery.settled)
    assert settled == [False, True]
    for again in (delivery.ack, delivery.nack, lambda: delivery.reject("no"), delivery.extend):
        with pytest.raises((AlreadySettled, LeaseLost)):
            await again()
    await empty(fabric.protocol, "once")


async def test_concurrent_settlements_one_wins(fabric: Fabric) -> None:
    await fabric.protocol.send(task("race"))
    delivery = await take_one(fabric.protocol, "race")
    outcomes = await asyncio.gather(delivery.ack(), delivery.ack(), delivery.reject("late"), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or isinstance(outcome, AlreadySettled) for outcome in outcomes)


async def test_depth_tells_where_messages_are(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "deep", 1, keys=["a", "b", "c"])
    await fabric.protocol.send(task("deep"), delay_s=60)
    await holds(fabric.protocol, "deep", (3, 0, 1, 0))
    delivery = await take_one(fabric.protocol, "deep")
    await holds(fabric.protocol, "deep", (2, 1, 1, 0))
    await delivery.reject("no")
    await eventually(lambda: _counts(fabric, "deep"), (2, 0, 1, 1))
    assert (await fabric.protocol.depth("deep")).oldest_age_s >= 0
    await holds(fabric.protocol, "nobody", (0, 0, 0, 0))


async def _counts(fabric: Fabric, agent: str) -> tuple[int, int, int, int]:
    return counts(await fabric.protocol.depth(agent))


async def test_agents_that_have_a_queue_are_listed(fabric: Fabric) -> None:
    await fabric.protocol.send(task("sent-to"))
    await fabric.protocol.subscribe("subscribed", ["task"])
    await fabric.protocol.subscribe("member-of", groups=["team"])
    assert {"sent-to", "subscribed", "member-of"} <= set(await fabric.protocol.agents())
    assert "team" not in await fabric.protocol.agents()


async def test_instances_share_the_agents_queue_and_have_their_own_order(fabric: Fabric) -> None:
    await fabric.protocol.send_many([task(f"many/{n}", step, key="same") for step in range(3) for n in range(10)])
    assert (await fabric.protocol.depth("many")).ready == 30
    taken = await take(fabric.protocol, "many", 30)
    for n in range(10):
        assert [number(delivery) for delivery in taken if delivery.message.to == f"many/{n}"] == [0, 1, 2]


async def test_higher_priority_is_sooner_among_keys_that_wait(fabric: Fabric) -> None:
    batch = [task("prio", n, key=f"k{n}", priority=(1, 5, 8, 10)[n % 4]) for n in range(40)]
    await fabric.protocol.send_many(batch)
    order: list[int] = []
    done = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        order.append(delivery.message.priority)
        if len(order) == 40:
            done.set()

    async with serving(fabric.protocol, "prio", handle):
        await asyncio.wait_for(done.wait(), 20)
    assert sum(order[:20]) > sum(order[20:]), order


async def test_a_closed_protocol_says_so(fabric: Fabric) -> None:
    member = await fabric.member()
    await member.close()
    with pytest.raises(Closed):
        await member.send(task("closed"))
    with pytest.raises(Closed):
        await member.receive("closed", wait_s=0)
    await holds(fabric.protocol, "closed", (0, 0, 0, 0))
