"""Promise 13: the same object outlives an outage of its store; health and counters tell the truth."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hivewire.coordination.context import Context
from hivewire.coordination.worker import Worker
from hivewire.delivery import Delivery
from hivewire.errors import ConnectionLost, HivewireError, Reject, TimedOut
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    empty,
    nothing_for,
    number,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import eventually, until


async def test_senders_and_consumers_go_on_after_an_outage(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(fabric.protocol, "on", handle):
        await fabric.protocol.send(task("on", 1))
        await until(lambda: seen, "the first one")
        async with fabric.outage():
            sending = asyncio.create_task(fabric.protocol.send(task("on", 2), timeout_s=20))
            done, _ = await asyncio.wait([sending], timeout=1.0)
            assert bool(done) is not fabric.has_outages
        await asyncio.wait_for(sending, 10)
        await until(lambda: 2 in seen, "consumers resume", fabric.resume_s)
    assert list(dict.fromkeys(seen)) == [1, 2]


async def test_an_outage_and_its_end_are_told_once(fabric: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    with caplog.at_level(logging.INFO, "hivewire.engine.feeding"):
        async with serving(fabric.protocol, "told", handle):
            await fabric.protocol.send(task("told", 1))
            await until(lambda: seen, "the first one")
            async with fabric.outage():
                await asyncio.sleep(2.0)  # what is tested is that time passes
            await fabric.protocol.send(task("told", 2))
            await until(lambda: 2 in seen, "it resumes", fabric.resume_s)
    told = [record.getMessage() for record in caplog.records if record.name == "hivewire.engine.feeding"]
    assert len(told) <= 4, told
    assert told == ["cannot take messages yet", "can take messages again"] * (len(told) // 2)


async def test_who_begins_in_an_outage_takes_when_it_is_over(fabric: Fabric) -> None:
    worker, stop = Worker("begins", groups=["team"]), asyncio.Event()
    seen: list[int] = []

    @worker.on("task")
    async def handle(message: Message, ctx: Context) -> None:
        seen.append(message.content["n"])

    await fabric.protocol.health()  # it is connected
    async with fabric.outage():
        job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
        await asyncio.wait([job], timeout=1.5)
        assert not job.done()
    await fabric.protocol.send(task("begins", 1))
    await until(lambda: seen == [1] or job.done(), "it takes", fabric.resume_s + 5)
    stop.set()
    await job


async def test_who_begins_in_an_outage_can_be_stopped(fabric: Fabric) -> None:
    worker, stop = Worker("stopped"), asyncio.Event()

    @worker.on("task")
    async def handle(message: Message, ctx: Context) -> None:
        raise AssertionError("nothing was sent")

    await fabric.protocol.health()
    async with fabric.outage():
        job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
        await asyncio.wait([job], timeout=0.5)
        stop.set()
        await asyncio.wait_for(job, 5)


async def test_consume_goes_on_after_an_outage(fabric: Fabric) -> None:
    seen: list[int] = []

    async def consume() -> None:
        async for delivery in fabric.protocol.consume("loop"):
            async with delivery:
                seen.append(number(delivery))

    job = asyncio.create_task(consume())
    await fabric.protocol.send(task("loop", 1))
    await until(lambda: seen, "the first one")
    async with fabric.outage():
        await asyncio.wait([job], timeout=1.0)
        assert not job.done()
    await fabric.protocol.send(task("loop", 2))
    await until(lambda: 2 in seen or job.done(), "it resumes", fabric.resume_s)
    job.cancel()
    await asyncio.wait([job])
    assert job.cancelled()
    assert list(dict.fromkeys(seen)) == [1, 2]


async def test_health_turns_red_and_green_again(fabric: Fabric) -> None:
    async def ok() -> bool:
        began = asyncio.get_running_loop().time()
        health = await fabric.protocol.health()
        assert asyncio.get_running_loop().time() - began < 5, "health blocks"
        return health.ok

    assert await ok()
    async with fabric.outage():
        await eventually(ok, not fabric.has_outages, 5)
        if fabric.has_outages:
            assert (await fabric.protocol.health()).detail
    await eventually(ok, True, 5)


async def test_a_send_in_an_outage_that_lasts_is_a_typed_error(fabric: Fabric) -> None:
    message = task("lasts", 1)
    if fabric.has_outages:
        async with fabric.outage():
            with pytest.raises((ConnectionLost, TimedOut)):
                await fabric.protocol.send(message, timeout_s=0.5)
    await fabric.protocol.send(message)  # repeated with the same id, as the error says
    assert len(await take(fabric.protocol, "lasts", 1)) == 1
    await nothing_for(fabric.protocol, "lasts")  # the first one may have been stored after all
    await empty(fabric.protocol, "lasts")


async def test_a_handler_that_ends_in_an_outage_is_acknowledged_or_repeated(fabric: Fabric) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))
        started.set()
        await go_on.wait()

    await send_numbered(fabric.protocol, "inside", 3)
    async with serving(fabric.protocol, "inside", handle):
        await started.wait()
        async with fabric.outage():
            go_on.set()
            await asyncio.wait([asyncio.create_task(asyncio.sleep(0.5))])
        await empty(fabric.protocol, "inside")
    assert list(dict.fromkeys(seen)) == [0, 1, 2]


async def test_a_receiver_waits_through_an_outage(fabric: Fabric) -> None:
    async with fabric.outage():
        receiving = asyncio.create_task(take_one(fabric.protocol, "waits", within_s=20))
        await asyncio.wait([receiving], timeout=0.5)
    other = await fabric.member()
    await other.send(task("waits", 1))
    try:
        delivery = await receiving
    except (ConnectionLost, TimedOut):  # as good as waiting: the caller repeats
        delivery = await take_one(fabric.protocol, "waits")
    await delivery.ack()


async def test_metrics_add_up_after_a_drain(fabric: Fabric) -> None:
    async def handle(delivery: Delivery) -> None:
        n = number(delivery)
        if n % 10 == 3 and delivery.attempt == 1:
            raise RuntimeError("once")
        if n % 10 == 7:
            raise Reject("never")

    member = await fabric.member()
    batch = [task("sum", n, key=f"k{n % 7}") for n in range(100)]
    await member.send_many(batch)
    await member.send(batch[5])
    async with serving(member, "sum", handle, concurrency=4):
        await empty(member, "sum", dead=10)
    metrics = member.metrics()
    assert metrics.messages_sent == metrics.total_messages_sent == 101
    assert metrics.acked == 90
    assert metrics.nacked == 10
    assert metrics.dead == 10
    assert metrics.redelivered == 10
    assert metrics.duplicates == 1
    assert metrics.messages_received == metrics.acked + metrics.nacked + metrics.dead
    assert metrics.total_messages_received == metrics.messages_received
    assert metrics.total_messages_failed == metrics.messages_failed
    assert metrics.in_flight == 0
    assert metrics.expired == 0
    assert metrics.average_latency >= 0
    assert metrics.last_updated > 0


async def test_metrics_of_messages_that_exhaust_their_attempts(fabric: Fabric) -> None:
    """Each start of a handler ends in one way: acknowledged, to be tried again, or a dead letter."""

    async def fail(delivery: Delivery) -> None:
        if number(delivery) < 4:
            raise RuntimeError("never")

    member = await fabric.member(max_attempts=3)
    await member.send_many([task("tired", n, key=f"k{n}") for n in range(10)])
    async with serving(member, "tired", fail, concurrency=4):
        await empty(member, "tired", dead=4)
    metrics = member.metrics()
    assert (metrics.messages_received, metrics.acked, metrics.dead) == (4 * 3 + 6, 6, 4)
    assert metrics.nacked == 4 * 2
    assert metrics.messages_received == metrics.acked + metrics.nacked + metrics.dead


async def test_metrics_in_flight_is_what_is_held(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "held", 1, keys=["a", "b", "c"])
    held = [await take_one(fabric.protocol, "held") for _ in range(3)]
    assert fabric.protocol.metrics().in_flight == 3
    for delivery in held:
        await delivery.ack()
    assert fabric.protocol.metrics().in_flight == 0


async def test_metrics_are_a_copy(fabric: Fabric) -> None:
    before = fabric.protocol.metrics()
    await fabric.protocol.send(task("copy"))
    assert before.messages_sent == 0
    assert fabric.protocol.metrics().messages_sent == 1


async def test_a_refused_send_is_not_counted_as_sent(fabric: Fabric) -> None:
    with pytest.raises(HivewireError):
        await fabric.protocol.send(task("bad name!"))
    assert fabric.protocol.metrics().messages_sent == 0
