"""What the trail keeps, and finding a message among others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from hivewire.backend import Waiting
from hivewire.delivery import Delivery
from hivewire.message import Message
from hivewire.testing.conformance.explain import fail_until, narrator, story
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    drained,
    empty,
    serving,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import eventually


async def test_by_default_trouble_is_told_and_nothing_else(fabric: Fabric) -> None:
    protocol = await narrator(fabric, trail="trouble")
    plain, troubled = task("coder", 1, key="a"), task("coder", 2, key="b")
    await protocol.send_many([plain, troubled])

    async def fail_once(delivery: Delivery) -> None:
        if delivery.message.id == troubled.id:
            await fail_until(2, delivery)

    async with serving(protocol, "coder", fail_once):
        await empty(protocol, "coder")
    assert await story(protocol, plain.id) == []
    assert await story(protocol, troubled.id) == [
        "attempt 1 failed: ValueError: not at attempt 1; again in T",
        "attempt 2 started at ann",
        "acknowledged by ann",
    ]


async def test_off_records_nothing_and_still_finds_the_message(fabric: Fabric) -> None:
    protocol = await narrator(fabric, trail="off")
    message = task("coder", 1)
    await protocol.send(message)
    await (await take_one(protocol, "coder")).reject("no")
    assert await story(protocol, message.id) == ["now is a dead letter of coder, after 1 attempt: rejected: no"]


async def test_a_message_is_found_among_many(fabric: Fabric) -> None:
    """More than a page of them, in lanes of several, some delayed."""
    protocol = await narrator(fabric, trail="off")
    batch = [task("crowd", n, key=f"k{n % 700}") for n in range(2_500)]
    await protocol.send_many(batch)
    late = task("crowd", 1)
    await protocol.send(late, delay_s=60)
    for message in (batch[0], batch[1_234], batch[-1]):
        assert await story(protocol, message.id) == ["now waits in the queue of crowd"]
    assert await story(protocol, late.id) == ["now waits in the queue of crowd for its time"]
    assert await story(protocol, "nobody") == []


async def test_the_question_ends_while_others_send_without_a_pause(fabric: Fabric) -> None:
    """Each look into the queue finds one message more than the last one did."""
    protocol = await narrator(fabric)
    message = task("coder", 0)
    await protocol.send(message)
    backend, looks = protocol.backend, 0
    look = backend.peek

    async def beside_a_sender(*args: Any, **options: Any) -> Sequence[Waiting]:
        nonlocal looks
        looks += 1
        assert looks <= 20, "it goes on as long as somebody sends"
        page = await look(*args, **options)
        await protocol.send(task("coder", looks))
        return page

    with patch.object(backend, "peek", beside_a_sender):
        (place,) = (await protocol.explain(message.id)).places
    assert (place.agent, place.state) == ("coder", "ready")


async def test_who_asks_at_the_same_time_as_others_takes_no_note_from_them(fabric: Fabric) -> None:
    """Two who write the notes at once would each drop what the other has written, and then what came meanwhile."""
    protocol = await narrator(fabric)
    add = protocol.backend.add_to_trail

    async def slowly(chunk: bytes, keep_s: float) -> None:
        await add(chunk, keep_s)
        await asyncio.sleep(0.02)

    sent: list[Message] = []
    with patch.object(protocol.backend, "add_to_trail", slowly):
        await protocol.send(task("many", 0))
        asking = asyncio.gather(*(protocol.explain("none") for _ in range(4)))
        while not asking.done() and len(sent) < 40:  # who looks through a queue follows one that grows
            sent.append(task("many", len(sent)))
            await protocol.send(sent[-1])
            await asyncio.sleep(0.001)
        await asking
    for message in sent[::8]:
        assert (await story(protocol, message.id))[:2] == ["sent by tester to many", "stored"]


async def test_the_trail_is_capped(fabric: Fabric) -> None:
    protocol = await narrator(fabric, trail_bytes=65_536)
    for _ in range(8):
        await protocol.send_many([task("many", n) for n in range(200)])
        await protocol.explain("none")  # has the trail written
    last = task("many", 9)
    await protocol.send(last)
    assert (await story(protocol, last.id))[:2] == ["sent by tester to many", "stored"]

    async def held() -> bool:
        return sum(len(entry.value) for entry in (await fabric.backend.trail()).values()) <= 65_536 * 9 // 8 + 40_000

    await eventually(held, True, 10.0)


async def test_an_outage_of_the_store_loses_no_note(fabric: Fabric) -> None:
    if not fabric.has_outages:
        return
    protocol = await narrator(fabric, lease_s=30.0)
    message = task("coder", 1)
    await protocol.send(message)
    delivery = await take_one(protocol, "coder")
    async with fabric.outage():
        ending = asyncio.create_task(delivery.ack())
        await asyncio.sleep(1.2)  # the time in which notes are written
    await ending
    await drained(protocol, "coder")
    told = await story(protocol, message.id)
    assert told == ["sent by tester to coder", "stored", "attempt 1 started at ann", "acknowledged by ann"]
