"""Promise 1: a message is stored before `send` returns, as durably as `health` says."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import BackendError, HivewireError, TooLarge
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import counts, empty, nothing_for, number, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import count, until


async def test_what_a_killed_sender_was_promised_is_there(fabric: Fabric) -> None:
    sender = await fabric.worker("kept", program="send", count=3_000, keys=5)
    await until(lambda: len(fabric.journal.entries("sent")) > 50, "it sends")
    sender.kill()
    await sender.ended()
    promised = fabric.journal.entries("sent")
    held = counts(await fabric.protocol.depth("kept"))[0]
    assert len(promised) <= held <= len(promised) + 1
    taken: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        taken.append(delivery)

    async with serving(fabric.protocol, "kept", handle, concurrency=5):
        await empty(fabric.protocol, "kept", within_s=40)
    assert len(taken) == held
    assert {entry.id for entry in promised} <= {delivery.message.id for delivery in taken}
    for key in {entry.key for entry in promised}:
        numbers = [number(delivery) for delivery in taken if delivery.message.key == key]
        assert numbers == sorted(numbers)


async def test_stored_messages_survive_a_restart_as_promised(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "restart", 5)
    await fabric.restart()
    if fabric.durable:
        assert [number(delivery) for delivery in await take(fabric.protocol, "restart", 5)] == [0, 1, 2, 3, 4]
    else:  # the lesser promise: nothing outlives the store, and nothing half of it
        assert counts(await fabric.protocol.depth("restart")) == (0, 0, 0, 0)


async def test_health_names_the_durability(fabric: Fabric) -> None:
    health = await fabric.protocol.health()
    assert health.ok, health
    assert health.durability == fabric.features.durability
    assert health.backend
    assert health.latency_s >= 0


async def test_require_durable_refuses_a_volatile_store(fabric: Fabric) -> None:
    if fabric.durable:
        member = await fabric.member(require_durable=True)
        await member.send(task("firm"))
        await take(member, "firm", 1)
    else:
        with pytest.raises(HivewireError, match="durable"):
            await fabric.member(require_durable=True)


async def test_a_refused_send_stores_nothing(fabric: Fabric) -> None:
    with pytest.raises(TooLarge):
        await fabric.protocol.send(Message(type="task", sender="me", to="big", content="x" * 1_048_600))
    with pytest.raises(TooLarge):
        await fabric.protocol.send(Message(type="task", sender="me", to="big", content=b"\x00" * 1_048_577))
    assert counts(await fabric.protocol.depth("big")) == (0, 0, 0, 0)


async def test_the_size_limit_is_a_setting(fabric: Fabric) -> None:
    member = await fabric.member(max_message_size_bytes=1000)
    await member.send(Message(type="task", sender="me", to="small", content=b"\xff" * 1000))
    with pytest.raises(TooLarge):
        await member.send(Message(type="task", sender="me", to="small", content=b"\xff" * 1001))
    assert len(await take(member, "small", 1)) == 1
    await nothing_for(member, "small", 0)


async def test_send_many_keeps_the_order_and_gives_each_its_receipt(fabric: Fabric) -> None:
    batch = [task("many", n, key=f"k{n % 3}") for n in range(30)]
    receipts = await fabric.protocol.send_many(batch)
    assert [receipt.id for receipt in receipts] == [message.id for message in batch]
    taken = await take(fabric.protocol, "many", 30)
    for key in ("k0", "k1", "k2"):
        numbers = [number(delivery) for delivery in taken if delivery.message.key == key]
        assert numbers == sorted(numbers)
    assert await fabric.protocol.send_many([]) == []


async def test_send_many_with_a_bad_message_stores_all_or_says_so(fabric: Fabric) -> None:
    bad = Message(type="task", sender="me", to="mixed", content="x" * 1_048_600)
    with pytest.raises(TooLarge):
        await fabric.protocol.send_many([task("mixed", 0), bad, task("mixed", 2)])
    assert counts(await fabric.protocol.depth("mixed"))[0] in (0, 1)


async def test_a_cancelled_send_harms_no_other(fabric: Fabric) -> None:
    """Cancelled anywhere, a send happened or did not; what was confirmed is there once, in order."""
    chance = random.Random(7)
    confirmed: list[int] = []

    async def send(n: int) -> None:
        await fabric.protocol.send(task("cut", n, key=f"k{n % 4}"))
        confirmed.append(n)

    for n in range(count(100, 1000)):
        sending = asyncio.create_task(send(n))
        if n % 3 == 0:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            sending.cancel()
        await asyncio.wait([sending])
    held = (await fabric.protocol.depth("cut")).ready
    taken = [number(delivery) for delivery in await take(fabric.protocol, "cut", held, within_s=30)]
    assert len(set(taken)) == len(taken)
    assert set(confirmed) <= set(taken)
    for key in range(4):
        assert [n for n in taken if n % 4 == key] == sorted(n for n in taken if n % 4 == key)


async def test_100_sends_on_one_object_overlap(fabric: Fabric) -> None:
    receipts = await asyncio.gather(*(fabric.protocol.send(task("burst", n)) for n in range(100)))
    assert len({receipt.id for receipt in receipts}) == 100
    assert [number(delivery) for delivery in await take(fabric.protocol, "burst", 100)] == list(range(100))
    await empty(fabric.protocol, "burst")


async def test_a_store_that_cannot_be_opened_is_a_typed_error(fabric: Fabric) -> None:
    if not fabric.unreachable_url:  # a store inside the process can always be opened
        assert not fabric.features.shared
        return
    from hivewire.factory import connect

    lost = connect(fabric.unreachable_url)
    with pytest.raises(BackendError):
        await lost.send(task("nowhere"), timeout_s=1)
    health = await lost.health()
    assert not health.ok
    assert health.detail
    await lost.close()
