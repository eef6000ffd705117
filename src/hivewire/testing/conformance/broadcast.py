"""Promise 10: every member of a group gets a broadcast once, with an acknowledgement of its own."""

from __future__ import annotations

import asyncio

from hivewire.delivery import Delivery
from hivewire.message import UNORDERED, Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    empty,
    nothing_for,
    number,
    one_letter,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until


async def _joined(fabric: Fabric, group: str, *agents: str) -> None:
    for agent in agents:
        await fabric.protocol.subscribe(agent, groups=[group])


async def test_every_member_gets_it_once_with_its_own_ack_and_retry(fabric: Fabric) -> None:
    await _joined(fabric, "team", "a", "b", "c")
    receipt = await fabric.protocol.broadcast(task("", 1), "team")
    assert receipt.id
    for agent in ("a", "b"):
        await take(fabric.protocol, agent, 1)
    first = await take_one(fabric.protocol, "c")
    await first.nack(delay_s=0)
    second = await take_one(fabric.protocol, "c")
    assert (first.attempt, second.attempt) == (1, 2)
    await second.ack()
    for agent in ("a", "b", "c"):
        await nothing_for(fabric.protocol, agent, 0.1)


async def test_the_fields_arrive(fabric: Fabric) -> None:
    await _joined(fabric, "fields", "one")
    message = Message(type="news", sender="me", content=b"\xff", metadata={"a": [1]}, priority=8, extra={"x": 1})
    await fabric.protocol.broadcast(message, "fields")
    (delivery,) = await take(fabric.protocol, "one", 1)
    got = delivery.message
    assert (got.type, got.sender, got.content, got.priority, got.extra) == ("news", "me", b"\xff", 8, {"x": 1})
    assert got.metadata["a"] == [1]


async def test_receivers_share_nothing(fabric: Fabric) -> None:
    await _joined(fabric, "share", "left", "right")
    await fabric.protocol.broadcast(
        Message(type="task", sender="me", content={"n": 1, "list": [1]}, metadata={"m": [1]}), "share"
    )
    (left,) = await take(fabric.protocol, "left", 1)
    left.message.content["list"].append("dirt")
    left.message.metadata["m"].append("dirt")
    left.message.metadata["more"] = "dirt"
    (right,) = await take(fabric.protocol, "right", 1)
    assert right.message.content == {"n": 1, "list": [1]}
    assert right.message.metadata["m"] == [1]
    assert "more" not in right.message.metadata


async def test_join_then_broadcast_with_nobody_running(fabric: Fabric) -> None:
    member = await fabric.member()
    await member.subscribe("away", groups=["g"])
    await member.close()
    await fabric.protocol.broadcast(task("", 5), "g")
    assert number((await take(fabric.protocol, "away", 1))[0]) == 5


async def test_who_left_gets_nothing_more(fabric: Fabric) -> None:
    await _joined(fabric, "g", "stays", "leaves")
    await fabric.protocol.broadcast(task("", 1), "g")
    await fabric.protocol.unsubscribe("leaves", groups=["g"])
    await fabric.protocol.broadcast(task("", 2), "g")
    assert [number(delivery) for delivery in await take(fabric.protocol, "stays", 2)] == [1, 2]
    assert [number(delivery) for delivery in await take(fabric.protocol, "leaves", 1)] == [1]
    await nothing_for(fabric.protocol, "leaves")


async def test_an_empty_group_gets_nothing(fabric: Fabric) -> None:
    receipt = await fabric.protocol.broadcast(task("", 1), "nobody")
    assert receipt.id
    await fabric.protocol.subscribe("late", groups=["nobody"])
    await nothing_for(fabric.protocol, "late")
    assert "nobody" not in await fabric.protocol.agents()


async def test_who_joins_after_gets_nothing_old(fabric: Fabric) -> None:
    await _joined(fabric, "g", "early")
    await fabric.protocol.broadcast(task("", 1), "g")
    await fabric.protocol.subscribe("late", groups=["g"])
    await fabric.protocol.broadcast(task("", 2), "g")
    assert [number(delivery) for delivery in await take(fabric.protocol, "late", 1)] == [2]
    assert [number(delivery) for delivery in await take(fabric.protocol, "early", 2)] == [1, 2]
    await nothing_for(fabric.protocol, "late")


async def test_who_leaves_and_comes_back_gets_what_was_sent_while_a_member(fabric: Fabric) -> None:
    await _joined(fabric, "g", "moody")
    for n, member in enumerate([True, False, True]):
        if member:
            await fabric.protocol.subscribe("moody", groups=["g"])
        else:
            await fabric.protocol.unsubscribe("moody", groups=["g"])
        await fabric.protocol.broadcast(task("", n), "g")
    assert [number(delivery) for delivery in await take(fabric.protocol, "moody", 2)] == [0, 2]
    await nothing_for(fabric.protocol, "moody")


async def test_broadcasts_of_one_sender_arrive_in_order(fabric: Fabric) -> None:
    await _joined(fabric, "g", "a", "b")
    for n in range(20):
        await fabric.protocol.broadcast(task("", n), "g")
    for agent in ("a", "b"):
        assert [number(delivery) for delivery in await take(fabric.protocol, agent, 20)] == list(range(20))


async def test_two_processes_of_a_member_handle_it_once(fabric: Fabric) -> None:
    await _joined(fabric, "g", "twin")
    workers = [await fabric.worker("twin") for _ in range(2)]
    for n in range(10):
        await fabric.protocol.broadcast(task("", n, key=f"k{n}"), "g")
    await until(lambda: len(fabric.journal.ends("twin")) >= 10, "all are handled")
    await empty(fabric.protocol, "twin")
    assert sorted(entry.n for entry in fabric.journal.starts("twin")) == list(range(10))
    assert len(workers) == 2


async def test_a_failing_member_does_not_hold_up_the_others(fabric: Fabric) -> None:
    await _joined(fabric, "g", "sick", "well")
    member = await fabric.member(max_attempts=2)

    async def fail(delivery: Delivery) -> None:
        raise RuntimeError("sick")

    async with serving(member, "sick", fail):
        await fabric.protocol.broadcast(task("", 1), "g")
        await take(fabric.protocol, "well", 1)
        letter = await one_letter(fabric.protocol, "sick")
    assert letter.message is not None
    assert letter.message.content["n"] == 1
    assert await fabric.protocol.replay("sick") == 1
    await take(fabric.protocol, "sick", 1)
    await nothing_for(fabric.protocol, "well", 0.1)


async def test_a_broadcast_survives_the_broadcaster_s_death(fabric: Fabric) -> None:
    """What `broadcast` confirmed reaches all members although the sender is gone at once."""
    await _joined(fabric, "g", "a", "b", "c")
    herald = await fabric.worker("herald")
    await fabric.protocol.send(task("herald", 0, ("broadcast", "g", {"n": 1}), ("die", 1), ("reject", "one is enough")))
    assert await herald.ended() != 0
    for agent in ("a", "b", "c"):
        assert number((await take(fabric.protocol, agent, 1, within_s=fabric.takeover_s + 5))[0]) == 1


async def test_a_fan_out_survives_the_death_of_its_process(fabric: Fabric) -> None:
    """No handler runs in it, so the death is not its fault: it comes again although one attempt is allowed."""
    once = {"max_attempts": 1}
    other = await fabric.member(**once)
    herald = await fabric.worker("a", program="die_in_fan_out", settings=once)
    assert await herald.ended() != 0
    assert number((await take(other, "a", 1, within_s=fabric.takeover_s + 5))[0]) == 1
    await nothing_for(other, "a", 0.3)
    assert not await other.dead_letters()


async def test_a_broadcast_survives_a_restart(fabric: Fabric) -> None:
    await _joined(fabric, "g", "a", "b")
    await fabric.protocol.broadcast(task("", 1), "g")
    await fabric.restart()
    for agent in ("a", "b"):
        if fabric.durable:
            assert len(await take(fabric.protocol, agent, 1)) == 1
        else:
            await nothing_for(fabric.protocol, agent, 0.1)


async def test_a_large_group(fabric: Fabric) -> None:
    agents = [f"m{n}" for n in range(count(50, 300))]
    await asyncio.gather(*(fabric.protocol.subscribe(agent, groups=["crowd"]) for agent in agents))
    await fabric.protocol.broadcast(task("", 1), "crowd")
    await asyncio.gather(*(take(fabric.protocol, agent, 1, within_s=30) for agent in agents))


async def test_a_repeated_broadcast_of_one_id_arrives_once(fabric: Fabric) -> None:
    await _joined(fabric, "g", "a")
    message = task("", 1)
    await fabric.protocol.broadcast(message, "g")
    await fabric.protocol.broadcast(message, "g")
    await take(fabric.protocol, "a", 1)
    await nothing_for(fabric.protocol, "a", 0.5)


async def test_unordered_broadcasts_wait_for_no_other(fabric: Fabric) -> None:
    await _joined(fabric, "g", "loose")
    for n in range(5):
        await fabric.protocol.broadcast(task("", n, key=UNORDERED), "g")
    held = [await take_one(fabric.protocol, "loose") for _ in range(5)]
    for delivery in held:
        await delivery.ack()


async def test_a_member_with_a_full_queue_does_not_hold_up_the_others(fabric: Fabric) -> None:
    """Its copy waits for room; nobody else's does, and no copy is lost."""
    member = await fabric.member(queue_cap=5)
    for agent in ("a-full", "b-free", "z-full"):
        await member.subscribe(agent, groups=["g"])
    for agent in ("a-full", "z-full"):
        await member.send_many([task(agent, n) for n in range(5)], timeout_s=5)
    await member.broadcast(task("", 99), "g")
    await take(member, "b-free", 1, within_s=5)
    for agent in ("a-full", "z-full"):
        numbers = [number(delivery) for delivery in await take(member, agent, 6)]
        assert sorted(numbers) == [0, 1, 2, 3, 4, 99]
    for agent in ("a-full", "b-free", "z-full"):
        await nothing_for(member, agent, 0.3)


async def test_the_volatile_kind_reaches_live_members_alone(fabric: Fabric) -> None:
    await _joined(fabric, "g", "live", "away")
    other = await fabric.member()
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(other, "live", handle):
        reached = asyncio.get_running_loop().time() + 10
        n = 0
        while not seen:  # the first ones may come before it listens: nothing is promised
            n += 1
            await fabric.protocol.broadcast(task("", n), "g", durable=False)
            await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() < reached, "no volatile broadcast arrives"
        await fabric.protocol.broadcast(task("", 1000), "g", durable=False)
        await until(lambda: 1000 in seen, "the last one")
    assert len(set(seen)) == len(seen)
    await nothing_for(fabric.protocol, "away")
    await empty(fabric.protocol, "live")
