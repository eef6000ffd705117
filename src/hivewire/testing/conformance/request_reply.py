"""Promise 11: the reply reaches the caller, or the caller gets `TimedOut`; a late reply is counted."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import HivewireError, TimedOut
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import ask_once, empty, nothing_for, number, serving, take, take_one, task
from hivewire.testing.conformance.waiting import count, until


async def test_a_request_gets_its_reply(fabric: Fabric) -> None:
    await fabric.worker("echo")
    other = await fabric.member()
    reply = await other.request(task("echo", 1, ("reply", {"answer": [1, None]})), timeout_s=10)
    assert reply.content == {"answer": [1, None]}
    assert reply.type == "response"
    await empty(fabric.protocol, "echo")


async def test_a_reply_names_its_request(fabric: Fabric) -> None:
    request = task("echo", 1)

    async def answer(delivery: Delivery) -> None:
        assert delivery.message.metadata["reply_to"]
        await fabric.protocol.reply(delivery.message, delivery.message.id, type="result")

    async with serving(fabric.protocol, "echo", answer):
        reply = await fabric.protocol.request(request, timeout_s=10)
    assert (reply.content, reply.in_reply_to, reply.type) == (request.id, request.id, "result")


async def test_a_reply_is_from_whom_was_asked_and_to_who_has_asked(fabric: Fabric) -> None:
    async def answer(delivery: Delivery) -> None:
        await other.reply(delivery.message, "yes")

    other = await fabric.member()
    async with serving(other, "echo", answer):
        for member in (fabric.protocol, other):  # by the store, and by the short way inside of one process
            reply = await member.request(task("echo", 1).replace(to="echo/7", sender="asker/3"), timeout_s=10)
            assert (reply.sender, reply.to) == ("echo/7", "asker/3")


async def test_concurrent_requests_get_each_its_own(fabric: Fabric) -> None:
    await fabric.inside("many", concurrency=8)
    members = [await fabric.member() for _ in range(3)]

    async def ask(member: Protocol, n: int) -> None:
        reply = await member.request(task("many", n, ("reply", n), key=f"k{n % 9}"), timeout_s=20)
        assert reply.content == n

    await asyncio.gather(*(ask(members[n % 3], n) for n in range(count(60, 600))))


async def test_no_reply_is_timed_out_and_a_late_one_is_counted(fabric: Fabric) -> None:
    await ask_once(fabric.protocol)
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimedOut):
        await fabric.protocol.request(task("mute", 1), timeout_s=0.3)
    assert asyncio.get_running_loop().time() - began < 3
    delivery = await take_one(fabric.protocol, "mute")
    other = await fabric.member()
    await other.reply(delivery.message, "too late")
    await delivery.ack()
    await until(lambda: fabric.protocol.metrics().late_replies == 1, "it is counted")


async def test_a_timed_out_request_is_still_handled(fabric: Fabric) -> None:
    """`TimedOut` says nothing about the message: it stays stored, as promised by `send`."""
    await ask_once(fabric.protocol)
    with pytest.raises(TimedOut):
        await fabric.protocol.request(task("patient", 4), timeout_s=0.1)
    assert number((await take(fabric.protocol, "patient", 1))[0]) == 4


async def test_without_reply_to_the_sender_gets_it(fabric: Fabric) -> None:
    await fabric.protocol.send(task("echo", 1, sender="asker"))
    delivery = await take_one(fabric.protocol, "echo")
    await fabric.protocol.reply(delivery.message, "hello")
    await delivery.ack()
    (reply,) = await take(fabric.protocol, "asker", 1)
    assert (reply.message.content, reply.message.in_reply_to) == ("hello", delivery.message.id)


async def test_reply_to_may_name_an_agent(fabric: Fabric) -> None:
    await fabric.protocol.send(task("echo", 1, metadata={"reply_to": "third/5"}))
    delivery = await take_one(fabric.protocol, "echo")
    await fabric.protocol.reply(delivery.message, "hello")
    await delivery.ack()
    assert (await take(fabric.protocol, "third", 1))[0].message.to == "third/5"


async def test_a_redelivered_handlers_second_reply_is_no_second_answer(fabric: Fabric) -> None:
    first = await fabric.worker("twice", program="worker")
    asking = asyncio.create_task(
        fabric.protocol.request(task("twice", 1, ("reply", "yes"), ("sleep", 0.3), ("die", 1)), timeout_s=20)
    )
    assert (await asking).content == "yes"
    assert await first.ended() != 0
    await fabric.worker("twice", program="worker")
    await empty(fabric.protocol, "twice")
    reply = await fabric.protocol.request(task("twice", 2, ("reply", "next")), timeout_s=20)
    assert reply.content == "next"


async def test_a_reply_gets_through_a_full_queue(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=5)
    for n in range(5):
        await member.send(task("asker", n), timeout_s=5)
    await member.send(task("echo", 1, sender="asker"))
    delivery = await take_one(member, "echo")
    await asyncio.wait_for(member.reply(delivery.message, {"n": 99}), 5)
    await delivery.ack()
    numbers = [number(got) for got in await take(member, "asker", 6)]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 99]


async def test_a_cancelled_request_leaves_nothing_behind(fabric: Fabric) -> None:
    job = asyncio.create_task(fabric.protocol.request(task("void", 1), timeout_s=30))
    delivery = await take_one(fabric.protocol, "void")
    job.cancel()
    await asyncio.wait([job])
    await fabric.protocol.reply(delivery.message, "anybody?")
    await delivery.ack()
    await fabric.inside("echo")
    reply = await fabric.protocol.request(task("echo", 1, ("reply", 1)), timeout_s=10)
    assert reply.content == 1


async def test_reply_mailboxes_are_not_agents_and_go_away(fabric: Fabric) -> None:
    member = await fabric.member()
    await fabric.inside("echo")
    await member.request(task("echo", 1, ("reply", 1)), timeout_s=10)
    assert list(await fabric.protocol.agents()) == ["echo"]
    before = {spec.name for spec in await fabric.backend.queues()}
    await member.close()
    after = {spec.name for spec in await fabric.backend.queues()}
    assert len(after) < len(before), f"left behind: {after}"


async def test_a_reply_to_a_caller_that_is_gone_harms_nobody(fabric: Fabric) -> None:
    member = await fabric.member()
    await ask_once(member)
    with pytest.raises(TimedOut):
        await member.request(task("late", 1), timeout_s=0.1)
    await member.close()
    delivery = await take_one(fabric.protocol, "late")
    with suppress(HivewireError):  # refused or dropped: both are fine
        await fabric.protocol.reply(delivery.message, "anybody?")
    await delivery.ack()
    await nothing_for(fabric.protocol, "late", 0.1)


async def test_a_request_over_two_hops(fabric: Fabric) -> None:
    await fabric.inside("back", concurrency=4)

    async def middle(delivery: Delivery) -> None:
        question = Message(
            type="query",
            sender="front",
            to="back",
            content={"n": 1, "do": [["reply", "deep"]]},
            key=delivery.message.id,
        )
        answer = await fabric.protocol.request(question, timeout_s=10)
        await fabric.protocol.reply(delivery.message, [answer.content])

    async with serving(fabric.protocol, "front", middle, concurrency=4):
        replies = await asyncio.gather(
            *(fabric.protocol.request(task("front", n, key=f"k{n}"), timeout_s=15) for n in range(8))
        )
    assert [reply.content for reply in replies] == [["deep"]] * 8
