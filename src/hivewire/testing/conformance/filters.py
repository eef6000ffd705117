"""Subscriptions: what an agent takes, and that what it does not take is kept and never lost."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.coordination.worker import Context, Worker
from hivewire.delivery import Delivery
from hivewire.errors import HivewireError
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    drained,
    empty,
    nothing_for,
    number,
    one_letter,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until


def typed(kind: str, to: str, n: int = 0, *, key: str | None = None) -> Message:
    return task(to, n, key=key).replace(type=kind)


async def test_who_named_no_type_takes_all(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("all")
    await fabric.protocol.send(typed("anything", "all"))
    assert (await take(fabric.protocol, "all", 1))[0].message.type == "anything"


async def test_a_type_outside_the_subscriptions_is_a_dead_letter(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("picky", ["task"])
    other = typed("event", "picky", 1)
    await fabric.protocol.send_many([other, typed("task", "picky", 2)])
    assert [number(delivery) for delivery in await take(fabric.protocol, "picky", 1)] == [2]
    letter = await one_letter(fabric.protocol, "picky")
    assert letter.message == other
    assert "subscri" in letter.reason.lower()
    await fabric.protocol.subscribe("picky", ["event"])
    assert await fabric.protocol.replay("picky") == 1
    assert number((await take(fabric.protocol, "picky", 1))[0]) == 1


async def test_subscriptions_are_the_union_over_processes_and_outlive_them(fabric: Fabric) -> None:
    for kind in ("task", "query"):
        member = await fabric.member()
        await member.subscribe("union", [kind])
        await member.close()
    subscription = await fabric.protocol.subscription("union")
    assert subscription.types is not None
    assert set(subscription.types) == {"task", "query"}
    await fabric.protocol.send_many([typed("task", "union", 1), typed("query", "union", 2), typed("event", "union", 3)])
    assert [number(delivery) for delivery in await take(fabric.protocol, "union", 2)] == [1, 2]
    await nothing_for(fabric.protocol, "union")
    await one_letter(fabric.protocol, "union")


async def test_subscriptions_survive_a_restart(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("keeps", ["task"], groups=["g"])
    await fabric.restart()
    subscription = await fabric.protocol.subscription("keeps")
    if fabric.durable:
        assert (list(subscription.types or ()), list(subscription.groups)) == (["task"], ["g"])
    else:
        assert (subscription.types, list(subscription.groups)) == (None, [])


async def test_no_types_adds_none(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("same", ["task"])
    await fabric.protocol.subscribe("same")
    await fabric.protocol.subscribe("same", groups=["g"])
    assert list((await fabric.protocol.subscription("same")).types or ()) == ["task"]


async def test_removing_the_last_type_leaves_none(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("last", ["task"])
    await fabric.protocol.unsubscribe("last", ["task"])
    types = (await fabric.protocol.subscription("last")).types
    assert types is not None
    assert list(types) == []
    await fabric.protocol.send(typed("task", "last", 1))
    await nothing_for(fabric.protocol, "last")
    await one_letter(fabric.protocol, "last")


async def test_unsubscribe_without_arguments_ends_everything(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("quit", ["task"], groups=["g"])
    await fabric.protocol.unsubscribe("quit")
    subscription = await fabric.protocol.subscription("quit")
    assert (list(subscription.types or ()), list(subscription.groups)) == ([], [])
    await fabric.protocol.broadcast(typed("task", ""), "g")
    await nothing_for(fabric.protocol, "quit")


async def test_unsubscribing_drops_no_message_that_waits(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("waits", ["task"])
    await fabric.protocol.send_many([typed("task", "waits", n) for n in range(5)])
    await fabric.protocol.unsubscribe("waits", ["task"])
    await fabric.protocol.subscribe("waits", ["task"])
    assert [number(delivery) for delivery in await take(fabric.protocol, "waits", 5)] == list(range(5))


async def test_another_members_subscription_is_in_force_at_once(fabric: Fabric) -> None:
    """What a member remembers of the catalogue may be old: it is read again before anything is refused."""
    reader, writer = await fabric.member(), await fabric.member()
    await reader.subscribe("fresh", ["task"])
    await reader.send(typed("task", "fresh", 0))
    await take(reader, "fresh", 1)
    for n, kind in enumerate(["event", "query", "inform", "result"], start=1):
        await writer.subscribe("fresh", [kind])
        await writer.send(typed(kind, "fresh", n))
        assert number((await take(reader, "fresh", 1))[0]) == n
    await empty(reader, "fresh")


async def test_subscribe_and_unsubscribe_while_messages_flow(fabric: Fabric) -> None:
    """Each message is handled or a dead letter, and none is both or neither."""
    other = await fabric.member()
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    await fabric.protocol.subscribe("flow", ["task", "event"])
    async with serving(fabric.protocol, "flow", handle, concurrency=4):
        for round_ in range(10):
            change = other.unsubscribe if round_ % 2 else other.subscribe
            await other.send_many(
                [typed("event" if n % 2 else "task", "flow", round_ * 20 + n, key=f"k{n}") for n in range(20)]
            )
            await change("flow", ["event"])
        await other.subscribe("flow", ["event"])
        await until(lambda: {n for n in range(200) if n % 2 == 0} <= set(seen), "all tasks are handled", 20)
        await drained(fabric.protocol, "flow")
    letters = await fabric.protocol.dead_letters("flow", limit=1000)
    buried = [letter.message.content["n"] for letter in letters if letter.message is not None]
    assert sorted(seen + buried) == list(range(200))
    assert all(n % 2 for n in buried)


async def test_a_conflicting_mode_is_refused(fabric: Fabric) -> None:
    other = await fabric.member()
    await fabric.protocol.subscribe("mode", mode="competing")
    with pytest.raises(HivewireError, match="mode"):
        await other.subscribe("mode", mode="ordered")
    await other.subscribe("mode", mode="competing")
    assert (await other.subscription("mode")).mode == "competing"


async def test_a_mode_can_still_be_chosen_for_a_queue_that_was_only_sent_to(fabric: Fabric) -> None:
    await fabric.protocol.send(task("undecided"))
    await fabric.protocol.subscribe("undecided", mode="competing")
    assert len(await take(fabric.protocol, "undecided", 1)) == 1


async def test_a_worker_subscribes_its_handlers_types(fabric: Fabric) -> None:
    worker = Worker("two-types")

    @worker.on("task")
    async def task_handler(message: Message, ctx: Context) -> None: ...

    @worker.on("query")
    async def query_handler(message: Message, ctx: Context) -> None: ...

    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
    await fabric.protocol.send(typed("task", "two-types"))
    await empty(fabric.protocol, "two-types")
    types = (await fabric.protocol.subscription("two-types")).types
    stop.set()
    await job
    assert set(types or ()) == {"task", "query"}


async def test_a_process_without_a_handler_fails_the_attempt(fabric: Fabric) -> None:
    """Another process of the agent subscribed the type; this one has no handler for it."""
    worker = Worker("partial")

    @worker.on("task")
    async def task_handler(message: Message, ctx: Context) -> None: ...

    await fabric.protocol.subscribe("partial", ["query"])
    member = await fabric.member(max_attempts=2)
    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(member, stop=stop.wait()))
    await fabric.protocol.send(typed("query", "partial", 1))
    letter = await one_letter(fabric.protocol, "partial")
    stop.set()
    await job
    assert letter.attempts == 2
    assert "no_handler" in letter.reason + letter.error


async def test_replies_and_events_pass_only_if_subscribed(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("asker", ["task"])
    await fabric.protocol.send(Message(type="response", sender="x", to="asker", content={"n": 1}))
    await nothing_for(fabric.protocol, "asker")
    assert (await one_letter(fabric.protocol, "asker")).attempts == 0


async def test_a_delivery_of_an_unsubscribed_type_in_hand_can_be_settled(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("hand", ["task"])
    await fabric.protocol.send(typed("task", "hand"))
    held = await take_one(fabric.protocol, "hand")
    await fabric.protocol.unsubscribe("hand", ["task"])
    await held.ack()
    await empty(fabric.protocol, "hand")
