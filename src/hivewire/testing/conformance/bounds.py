"""Promise 8: nothing is dropped in silence: not when full, not when too old, not when agents fill each other."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.backend import Mode
from hivewire.delivery import Delivery
from hivewire.errors import QueueFull
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    ask_once,
    counts,
    empty,
    holds,
    nothing_for,
    number,
    one_letter,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until

CAP = 20


async def _full(fabric: Fabric, agent: str, *, cap: int = CAP) -> tuple[int, Exception | None]:
    """Send until it is refused; how many were stored."""
    member = await fabric.member(queue_cap=cap)
    for n in range(3 * cap):
        try:
            await member.send(task(agent, n), timeout_s=0.2)
        except QueueFull as error:
            return n, error
    return 3 * cap, None


async def test_a_full_queue_refuses_and_keeps_all_it_took(fabric: Fabric) -> None:
    stored, error = await _full(fabric, "full")
    assert error is not None
    assert error.retryable  # type: ignore[attr-defined]
    assert CAP <= stored <= CAP + 1
    assert counts(await fabric.protocol.depth("full"))[0] == stored
    assert [number(delivery) for delivery in await take(fabric.protocol, "full", stored)] == list(range(stored))
    await nothing_for(fabric.protocol, "full", 0.1)


async def test_a_full_queue_makes_the_sender_wait(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    stored, _ = await _full(fabric, "wait")
    waiting = asyncio.create_task(member.send(task("wait", 99), timeout_s=20))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await take(fabric.protocol, "wait", 2)
    await asyncio.wait_for(waiting, 10)
    rest = await take(fabric.protocol, "wait", stored - 2 + 1)
    assert number(rest[-1]) == 99


async def test_a_full_queue_keeps_the_order_of_those_who_wait(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    stored, _ = await _full(fabric, "line")
    waiting = []
    for n in range(100, 105):
        waiting.append(asyncio.create_task(member.send(task("line", n), timeout_s=20)))
        await asyncio.wait(waiting, timeout=0.1)  # it was refused, and waits
    taken = await take(fabric.protocol, "line", stored + 5, within_s=20)
    await asyncio.gather(*waiting)
    assert [number(delivery) for delivery in taken][stored:] == [100, 101, 102, 103, 104]


async def test_another_queue_is_not_held_up_by_a_full_one(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    await _full(fabric, "stuck")
    waiting = asyncio.create_task(member.send(task("stuck"), timeout_s=20))
    await asyncio.sleep(0)
    await asyncio.wait_for(member.send(task("free"), timeout_s=5), 5)
    await take(fabric.protocol, "free", 1)
    await take(fabric.protocol, "stuck", 2)
    await asyncio.wait_for(waiting, 10)


async def test_send_many_over_the_cap_is_stored_or_refused_one_by_one(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    with pytest.raises(QueueFull):
        await member.send_many([task("bulk", n) for n in range(3 * CAP)], timeout_s=0.5)
    held = counts(await member.depth("bulk"))[0]
    assert held <= CAP + 1
    assert [number(delivery) for delivery in await take(member, "bulk", held)] == list(range(held))


async def test_two_agents_that_fill_each_other_go_on(fabric: Fabric) -> None:
    """Both queues are full and each handler sends to the other: the reserve keeps them alive."""
    member = await fabric.member(queue_cap=CAP)
    handled: dict[str, int] = {"ping": 0, "pong": 0}

    def bounce(agent: str, other: str) -> object:
        async def handle(delivery: Delivery) -> None:
            handled[agent] += 1
            if delivery.message.content["n"] > 0:
                await member.send(task(other, delivery.message.content["n"] - 1, sender=agent), timeout_s=5)

        return handle

    for agent in ("ping", "pong"):
        await member.send_many([task(agent, 4, key=f"k{n}") for n in range(CAP)], timeout_s=5)
    async with asyncio.TaskGroup() as group:
        jobs = [
            group.create_task(member.serve(agent, bounce(agent, other), concurrency=2))  # type: ignore[arg-type]
            for agent, other in (("ping", "pong"), ("pong", "ping"))
        ]
        await until(lambda: sum(handled.values()) >= 2 * CAP * 5, "every ball is played to its end", 30)
        await empty(member, "ping")
        await empty(member, "pong")
        for job in jobs:
            job.cancel()
    assert sum(handled.values()) == 2 * CAP * 5


async def test_a_retry_is_never_refused(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    stored, _ = await _full(fabric, "nacked")
    held = await take_one(member, "nacked")
    await _full(fabric, "nacked")
    await held.nack(delay_s=0)
    taken = await take(member, "nacked", 1)
    assert number(taken[0]) == 0
    assert stored >= CAP


async def test_expired_unread_goes_to_the_dead_letters(fabric: Fabric) -> None:
    short, longer = task("ttl", 1, ttl_s=0.2, key="a"), task("ttl", 2, ttl_s=60, key="b")
    await fabric.protocol.send_many([short, longer])
    await asyncio.sleep(0.4)  # what is tested is that time passes
    (delivery,) = await take(fabric.protocol, "ttl", 1)
    assert number(delivery) == 2
    letter = await one_letter(fabric.protocol, "ttl")
    assert letter.message == short
    assert letter.reason == "expired"
    assert letter.attempts == 0


async def test_expiry_does_not_need_a_reader(fabric: Fabric) -> None:
    await fabric.protocol.send(task("unread", 1, ttl_s=0.2))
    if fabric.features.finds_expired:
        letter = await one_letter(fabric.protocol, "unread", within_s=20)
        assert letter.reason == "expired"
    else:  # the lesser promise: found when somebody reads
        await asyncio.sleep(0.4)
        await nothing_for(fabric.protocol, "unread")
        await one_letter(fabric.protocol, "unread")


async def test_expiry_keeps_the_order_of_the_rest(fabric: Fabric) -> None:
    batch = [task("mixed", n, ttl_s=0.2 if n % 2 else None, key="k") for n in range(10)]
    await fabric.protocol.send_many(batch)
    await asyncio.sleep(0.4)
    assert [number(delivery) for delivery in await take(fabric.protocol, "mixed", 5)] == [0, 2, 4, 6, 8]
    if not fabric.features.finds_expired:  # the lesser promise: found when somebody reads
        await nothing_for(fabric.protocol, "mixed")
    await empty(fabric.protocol, "mixed", dead=5)


async def test_what_runs_does_not_expire_under_its_handler(fabric: Fabric) -> None:
    assert await fabric.protocol.receive("running", wait_s=0) == []  # a group that is joined late takes its time
    await fabric.protocol.send(task("running", 1, ttl_s=1.0))
    async with await take_one(fabric.protocol, "running"):
        await asyncio.sleep(1.3)
    await holds(fabric.protocol, "running", (0, 0, 0, 0))


async def test_a_retry_past_the_time_to_live_expires(fabric: Fabric) -> None:
    assert await fabric.protocol.receive("again", wait_s=0) == []  # a group that is joined late takes its time
    await fabric.protocol.send(task("again", 1, ttl_s=0.8))
    delivery = await take_one(fabric.protocol, "again")
    await delivery.nack(delay_s=1.0)
    await nothing_for(fabric.protocol, "again", 1.0)
    letter = await one_letter(fabric.protocol, "again")
    assert letter.reason == "expired"
    assert letter.attempts == 1
    await holds(fabric.protocol, "again", (0, 0, 0, 1))


@pytest.mark.parametrize("mode", ["ordered", "competing"])
@pytest.mark.parametrize("handled", [False, True], ids=["unread", "the first was handled"])
async def test_what_is_sent_twice_and_runs_out_unread_has_one_end(fabric: Fabric, mode: Mode, *, handled: bool) -> None:
    protocol, message = fabric.protocol, task("twice", 1, ttl_s=1.0)
    await protocol.subscribe("twice", mode=mode)
    if not fabric.features.finds_expired:
        await protocol.receive("twice", wait_s=0)  # a group that is joined late takes its time
    await protocol.send(message)
    if handled:
        await take(protocol, "twice", 1)
    await protocol.send(message)
    await protocol.send(message.replace(id="another"))
    if not fabric.features.finds_expired:  # the lesser promise: found when somebody reads
        await asyncio.sleep(1.2)
        await nothing_for(protocol, "twice", 2.0)
    ids = ["another"] if handled else [message.id, "another"]
    await holds(protocol, "twice", (0, 0, 0, len(ids)))
    assert sorted([letter.id for letter in await protocol.dead_letters("twice")]) == sorted(ids)
    assert await protocol.replay("twice") == len(ids)
    assert sorted([one.message.id for one in await take(protocol, "twice", len(ids))]) == sorted(ids)


@pytest.mark.parametrize("handled", [True, False], ids=["handled", "failed"])
@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_a_resend_that_runs_out_beside_its_first_one_is_no_dead_letter_yet(
    fabric: Fabric, mode: Mode, *, handled: bool
) -> None:
    """What becomes of the first one is still open."""
    protocol, message = fabric.protocol, task("beside", 1, ttl_s=1.0, key="a")
    await protocol.subscribe("beside", mode=mode)
    assert await protocol.receive("beside", wait_s=0) == []  # a group that is joined late takes its time
    await protocol.send(message)
    async with await take_one(protocol, "beside") as first:
        await protocol.send_many([message, message.replace(id="another", key="b")])
        await asyncio.sleep(1.2)  # what is tested is that time passes
        await nothing_for(protocol, "beside")
        assert (await one_letter(protocol, "beside")).id == "another"
        if not handled:
            await first.nack(0)
    await nothing_for(protocol, "beside", 1.0)
    await holds(protocol, "beside", (0, 0, 0, 1 if handled else 2))


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_a_resend_of_what_has_expired_has_no_end_of_its_own(fabric: Fabric, mode: Mode) -> None:
    protocol, message = fabric.protocol, task("dead", 1, ttl_s=1.0)
    await protocol.subscribe("dead", mode=mode)
    await protocol.send(message)
    if not fabric.features.finds_expired:
        await asyncio.sleep(1.2)
        await nothing_for(protocol, "dead")
    letter = await one_letter(protocol, "dead")
    await protocol.send(message)
    await nothing_for(protocol, "dead")
    await holds(protocol, "dead", (0, 0, 0, 1))
    assert await protocol.dead_letters("dead") == [letter]


async def test_cleanup_never_touches_messages(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "clean", 5)
    await fabric.protocol.send(task("clean", 5), delay_s=0.5)
    await fabric.protocol.cleanup(0)
    assert len(await take(fabric.protocol, "clean", 6)) == 6


async def test_the_smallest_and_the_largest_that_fit(fabric: Fabric) -> None:
    largest = Message(type="task", sender="me", to="fit", content=b"\x01" * 1_048_576, key="a")
    smallest = Message(type="t", sender="me", to="fit", key="b")
    await fabric.protocol.send_many([largest, smallest])
    taken = {str(delivery.message.key): delivery.message for delivery in await take(fabric.protocol, "fit", 2)}
    assert taken == {"a": largest, "b": smallest}


async def test_a_handler_that_fills_a_third_agent_is_delayed_not_buried(fabric: Fabric) -> None:
    """The reserve is bounded, too: QueueFull in a handler delays without counting an attempt."""
    member = await fabric.member(queue_cap=CAP, max_attempts=2)
    await _full(fabric, "sink")

    async def pour(delivery: Delivery) -> None:
        for n in range(400):
            await member.send(task("sink", n, sender="source"), timeout_s=0.05)

    await member.send(task("source"))
    async with serving(member, "source", pour):
        await until(lambda: member.metrics().nacked >= 2, "it is delayed more than once", 20)
        assert (await member.depth("source")).dead == 0
    depth = await member.depth("sink")
    assert depth.ready <= CAP + 1 + max(100, CAP // 10) + 1


async def test_a_request_into_a_full_queue_waits_for_room_and_then_says_so(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=CAP)
    await ask_once(member)
    await _full(fabric, "asked")
    with pytest.raises(QueueFull):
        await member.request(task("asked", 98), timeout_s=0.3)
    waiting = asyncio.create_task(member.request(task("asked", 99), timeout_s=20))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done

    async def answer(delivery: Delivery) -> None:
        if delivery.message.metadata.get("reply_to"):
            await fabric.protocol.reply(delivery.message, number(delivery))

    async with serving(fabric.protocol, "asked", answer):
        assert (await waiting).content == 99
