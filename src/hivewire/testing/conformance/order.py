"""Order: messages of one key are handled one at a time, in the order sent, whatever happens."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.delivery import Delivery
from hivewire.message import UNORDERED
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.journal import first_seen, overlapping
from hivewire.testing.conformance.scenario import (
    empty,
    nothing_for,
    number,
    send_numbered,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until


def check_order(fabric: Fabric, agent: str, keys: int, each: int, *, dead: list[str] | None = None) -> None:
    """Each key: all numbers, first seen in the order sent, never two at a time."""
    seen = first_seen(fabric.journal.starts(agent))
    assert len(seen) == keys
    for key, numbers in seen.items():
        assert numbers == list(range(each)), f"{key}: {numbers}"
    assert overlapping(fabric.journal.entries("start", "end", agent=agent), dead=dead or []) == []


async def test_no_next_message_of_a_key_until_the_last_is_settled(fabric: Fabric) -> None:
    other = await fabric.member()
    await send_numbered(fabric.protocol, "strict", 3)
    for n in range(3):
        held = await take_one(fabric.protocol, "strict")
        assert number(held) == n
        await nothing_for(fabric.protocol, "strict", 0.1)
        await nothing_for(other, "strict", 0.1)
        await held.ack()


@pytest.mark.parametrize("members", [1, 3, 8])
async def test_order_per_key_with_members_that_join_and_fail(fabric: Fabric, members: int) -> None:
    keys, each = [f"k{n}" for n in range(10)], count(12, 100)
    first = await fabric.inside("ordered", concurrency=4)
    batch = []
    for n in range(each):
        for key in keys:
            steps = [("raise", 1)] if (n + int(key[1:])) % 9 == 4 else [("sleep", 0.001)]
            batch.append(task("ordered", n, *steps, key=key))
    await fabric.protocol.send_many(batch[: len(batch) // 2])
    await until(lambda: len(fabric.journal.ends()) > 20, "it runs")
    for _ in range(members - 1):
        await fabric.inside("ordered", concurrency=4)
    await fabric.protocol.send_many(batch[len(batch) // 2 :])
    if members > 1:  # a planned leave
        first.terminate()
        assert await first.ended() == 0
    await empty(fabric.protocol, "ordered", within_s=40)
    check_order(fabric, "ordered", len(keys), each)


async def test_order_over_kills(fabric: Fabric) -> None:
    """100 keys of 50 messages and 3 members (sampled: 30 keys of 10), while two of them are killed."""
    keys, each = [f"k{n}" for n in range(count(30, 100))], count(10, 50)
    workers = [await fabric.worker("killed", concurrency=8, settings={"max_attempts": 20}) for _ in range(3)]
    await send_numbered(fabric.protocol, "killed", each, keys=keys, steps=[("sleep", 0.005)])
    dead = []
    for worker in workers[:2]:
        handled = len(fabric.journal.ends())
        await until(lambda handled=handled: len(fabric.journal.ends()) > handled + 20, "work goes on")  # type: ignore[misc]
        worker.kill()
        await worker.ended()
        dead.append(worker.name)
    await empty(fabric.protocol, "killed", within_s=50)
    check_order(fabric, "killed", len(keys), each, dead=dead)


async def test_order_over_a_nack_with_a_long_delay(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "wait", 3)
    first = await take_one(fabric.protocol, "wait")
    await first.nack(delay_s=0.5)
    await nothing_for(fabric.protocol, "wait", 0.2)
    assert [number(delivery) for delivery in await take(fabric.protocol, "wait", 3)] == [0, 1, 2]


async def test_two_producers_of_one_key_keep_each_ones_order(fabric: Fabric) -> None:
    senders = [await fabric.member() for _ in range(2)]
    each = count(50, 500)

    async def send(sender: int) -> None:
        for n in range(each):
            await senders[sender].send(task("both", n, sender=f"s{sender}", key="one"))

    await asyncio.gather(send(0), send(1))
    taken = await take(fabric.protocol, "both", 2 * each, within_s=40)
    for sender in ("s0", "s1"):
        assert [number(delivery) for delivery in taken if delivery.message.sender == sender] == list(range(each))


async def test_the_default_key_is_the_sender(fabric: Fabric) -> None:
    await fabric.protocol.send_many([task("plain", n, sender=sender) for n in range(3) for sender in ("a", "b")])
    got: list[Delivery] = []
    while len(got) < 2:
        got += await fabric.protocol.receive("plain", wait_s=2)
    assert sorted((delivery.message.sender, number(delivery)) for delivery in got) == [("a", 0), ("b", 0)]
    await nothing_for(fabric.protocol, "plain", 0.1)


async def test_unordered_messages_wait_for_no_other(fabric: Fabric) -> None:
    await fabric.protocol.send_many([task("loose", n, key=UNORDERED) for n in range(10)])
    got: list[Delivery] = []
    while len(got) < 10:
        more = await fabric.protocol.receive("loose", wait_s=2)
        assert more
        got += more
    assert sorted(number(delivery) for delivery in got) == list(range(10))


async def test_delayed_messages_come_in_the_order_they_fall_due(fabric: Fabric) -> None:
    for n, delay_s in ((2, 0.9), (1, 0.5), (0, 0.2)):
        await fabric.protocol.send(task("due", n), delay_s=delay_s)
    began = asyncio.get_running_loop().time()
    assert (await fabric.protocol.depth("due")).scheduled == 3
    taken = await take(fabric.protocol, "due", 3)
    assert [number(delivery) for delivery in taken] == [0, 1, 2]
    assert 0.5 <= asyncio.get_running_loop().time() - began < 5


async def test_a_delayed_message_does_not_hold_its_key(fabric: Fabric) -> None:
    await fabric.protocol.send(task("hold", 0), delay_s=0.5)
    await fabric.protocol.send(task("hold", 1))
    assert [number(delivery) for delivery in await take(fabric.protocol, "hold", 2)] == [1, 0]


async def test_a_delayed_message_survives_a_restart(fabric: Fabric) -> None:
    await fabric.protocol.send(task("sleepy", 4), delay_s=1.0)
    await fabric.restart()
    if fabric.durable:
        assert [number(delivery) for delivery in await take(fabric.protocol, "sleepy", 1)] == [4]
    else:
        await nothing_for(fabric.protocol, "sleepy", 1.2)
