"""Promise 2: the acknowledgement follows the handler; whatever stops a handler, the message comes again."""

from __future__ import annotations

import asyncio
import random

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import Reject, RetryAfter
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    empty,
    holds,
    number,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until, until_true


async def test_a_message_is_in_flight_until_its_handler_returned(fabric: Fabric) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        running.set()
        await go_on.wait()

    await fabric.protocol.send(task("ack"))
    async with serving(fabric.protocol, "ack", handle):
        await running.wait()
        await holds(fabric.protocol, "ack", (0, 1, 0, 0))
        go_on.set()
        await empty(fabric.protocol, "ack")


async def test_a_raising_handler_gets_it_again(fabric: Fabric) -> None:
    await fabric.inside("raise")
    await fabric.protocol.send(task("raise", 1, ("raise", 2)))
    await empty(fabric.protocol, "raise")
    assert [(entry.attempt, entry.note) for entry in fabric.journal.ends("raise")] == [
        (1, "RuntimeError"),
        (2, "RuntimeError"),
        (3, "done"),
    ]


async def test_async_with_nacks_and_goes_on_raising(fabric: Fabric) -> None:
    await fabric.protocol.send(task("with"))
    with pytest.raises(ZeroDivisionError):
        async with await take_one(fabric.protocol, "with"):
            raise ZeroDivisionError
    second = await take_one(fabric.protocol, "with")
    assert second.attempt == 2
    async with second:
        pass
    await empty(fabric.protocol, "with")


async def test_async_with_stops_its_signals(fabric: Fabric) -> None:
    await fabric.protocol.send(task("signal"))
    async with await take_one(fabric.protocol, "signal"):
        raise RetryAfter(0.1)
    async with await take_one(fabric.protocol, "signal") as second:
        assert second.attempt == 2
        raise Reject("enough")
    assert counts(await fabric.protocol.depth("signal")) == (0, 0, 0, 1)


async def test_a_killed_worker_s_message_comes_again_elsewhere(fabric: Fabric) -> None:
    first = await fabric.worker("die")
    await fabric.protocol.send(task("die", 1, ("sleep", 0.3), ("die", 1)))
    assert await first.ended() != 0
    second = await fabric.worker("die")
    await empty(fabric.protocol, "die")
    starts = fabric.journal.starts("die")
    assert [(entry.worker, entry.attempt) for entry in starts] == [(first.name, 1), (second.name, 2)]


async def test_a_cancelled_handler_s_message_comes_again(fabric: Fabric) -> None:
    started = asyncio.Event()

    async def hang(delivery: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    await fabric.protocol.send(task("cancel"))
    async with serving(fabric.protocol, "cancel", hang):
        await started.wait()
    again = await take_one(fabric.protocol, "cancel")
    assert again.attempt >= 1
    await again.ack()
    await empty(fabric.protocol, "cancel")


async def test_a_handler_that_swallows_its_cancellation_is_not_acknowledged_twice(fabric: Fabric) -> None:
    """It may end as handled or come again, but it is never lost and `serve` ends."""
    started = asyncio.Event()
    finished: list[int] = []

    async def stubborn(delivery: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # what a careless handler does
            await asyncio.sleep(0.01)
        finished.append(number(delivery))

    await fabric.protocol.send(task("stubborn", 5))
    async with serving(fabric.protocol, "stubborn", stubborn):
        await started.wait()
    assert finished == [5]
    left = sum(counts(await fabric.protocol.depth("stubborn"))[:3])
    assert left in (0, 1)
    assert len(await take(fabric.protocol, "stubborn", left)) == left
    await empty(fabric.protocol, "stubborn")


async def test_a_cancelled_async_with_gives_it_back(fabric: Fabric) -> None:
    started = asyncio.Event()

    async def one() -> None:
        async with await take_one(fabric.protocol, "inner"):
            started.set()
            await asyncio.Event().wait()

    await fabric.protocol.send(task("inner"))
    job = asyncio.create_task(one())
    await started.wait()
    job.cancel()
    await asyncio.wait([job])
    assert job.cancelled()
    again = await take_one(fabric.protocol, "inner")
    await again.ack()
    await empty(fabric.protocol, "inner")


async def test_receive_cancelled_anywhere_loses_nothing(fabric: Fabric) -> None:
    """100 receives are cancelled at random points, while messages arrive for them; every message is still
    handled, in order."""
    chance = random.Random(11)
    seen: list[tuple[str, int]] = []
    sent = [0, 0, 0]

    async def send() -> None:
        key = chance.randrange(3)
        sent[key] += 1
        await fabric.protocol.send(task("points", sent[key] - 1, key=f"k{key}"))

    async def receive() -> None:
        for delivery in await fabric.protocol.receive("points", limit=chance.randrange(1, 4), wait_s=1):
            seen.append((str(delivery.message.key), number(delivery)))
            await asyncio.shield(asyncio.ensure_future(delivery.ack()))

    async def steps(most: int) -> None:
        for _ in range(chance.randrange(most)):
            await asyncio.sleep(0)

    for point in range(count(100, 1000)):
        receiving = [asyncio.create_task(receive()) for _ in range(1 + point % 2)]
        await steps(6)
        sending = asyncio.create_task(send())
        await steps(12)
        if point % 4 == 3:
            await asyncio.wait([sending])
            await asyncio.sleep(chance.random() * 0.01)
        for job in receiving:
            job.cancel()
        await asyncio.wait([*receiving, sending])
    while sum(counts(await fabric.protocol.depth("points"))[:2]):
        await receive()
    for key in range(3):
        numbers = [n for name, n in seen if name == f"k{key}"]
        assert list(dict.fromkeys(numbers)) == list(range(sent[key])), (key, numbers)


async def test_attempts_count_starts_not_fetches(fabric: Fabric) -> None:
    """What a dead worker had only taken ahead, or waiting in line, is at its first attempt afterwards."""
    first = await fabric.worker("ahead", concurrency=1)
    await send_numbered(fabric.protocol, "ahead", 10, keys=["a", "b"], steps=[("sleep", 0.5)])
    await until(lambda: fabric.journal.starts("ahead"), "it runs")
    first.kill()
    await first.ended()
    began = {entry.id for entry in fabric.journal.starts("ahead")}
    seen: dict[str, int] = {}
    for delivery in await take(fabric.protocol, "ahead", 20 - len(fabric.journal.ends("ahead"))):
        seen.setdefault(delivery.message.id, delivery.attempt)
    for id_, attempt in seen.items():
        assert attempt == 1 or id_ in began, f"{attempt} attempts of what never started"


async def test_attempts_are_kept_over_members_and_restarts(fabric: Fabric) -> None:
    await fabric.protocol.send(task("kept"))
    for attempt in (1, 2):
        member = await fabric.member()
        delivery = await take_one(member, "kept")
        assert delivery.attempt == attempt
        await delivery.nack(delay_s=0)
        await member.close()
    await fabric.restart()
    if fabric.durable:
        delivery = await take_one(fabric.protocol, "kept")
        assert delivery.attempt == 3
        await delivery.ack()
    else:
        assert counts(await fabric.protocol.depth("kept")) == (0, 0, 0, 0)


async def test_given_back_unstarted_is_not_an_attempt(fabric: Fabric) -> None:
    member = await fabric.member()
    running = asyncio.Event()

    async def hang(delivery: Delivery) -> None:
        running.set()
        await asyncio.sleep(0.2)

    await send_numbered(fabric.protocol, "back", 8, keys=["a", "b"])
    stop = asyncio.Event()
    job = asyncio.create_task(member.serve("back", hang, stop=stop.wait()))
    await running.wait()
    stop.set()
    await job
    left = (await fabric.protocol.depth("back")).ready
    assert left > 0
    assert {delivery.attempt for delivery in await take(fabric.protocol, "back", left)} == {1}


@pytest.mark.slow
async def test_a_poison_message_is_buried_and_its_neighbours_are_not(fabric: Fabric) -> None:
    """It kills every process that handles it; what ran beside it is handled."""
    settings = {"max_attempts": 3}
    await fabric.protocol.send(task("poison", 0, ("sleep", 0.15), ("die", 99), key="poison"))
    await send_numbered(fabric.protocol, "poison", 3, keys=[f"k{n}" for n in range(6)], steps=[("sleep", 0.1)])
    lives = 0
    while (await fabric.protocol.depth("poison")).dead == 0:
        worker = await fabric.worker("poison", concurrency=4, settings=settings)
        lives += 1
        assert lives <= 12, "the poison message is never buried"

        async def over(name: str = worker.name) -> bool:
            return fabric.is_gone(name) or (await fabric.protocol.depth("poison")).dead > 0

        await until_true(over, "it died or was buried", 20)
    await fabric.worker("poison", concurrency=4, settings=settings)
    await empty(fabric.protocol, "poison", dead=1, within_s=30)
    (letter,) = await fabric.protocol.dead_letters("poison")
    assert letter.message is not None
    assert letter.message.key == "poison"
    done = {(entry.key, entry.n) for entry in fabric.journal.ends("poison") if entry.note == "done"}
    assert done >= {(f"k{n}", step) for n in range(6) for step in range(3)}
