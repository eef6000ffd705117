"""Corners: what the promises say together, where two of them meet."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from hivewire.coordination.worker import Context, Worker
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import Closed, MessageError, Reject, TimedOut
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    ask_once,
    counts,
    empty,
    nothing_for,
    number,
    one_letter,
    send_numbered,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until


async def test_priority_never_changes_the_order_of_a_key(fabric: Fabric) -> None:
    await fabric.protocol.send_many([task("same", n, key="k", priority=(1, 10, 5)[n % 3]) for n in range(9)])
    assert [number(delivery) for delivery in await take(fabric.protocol, "same", 9)] == list(range(9))


async def test_serve_and_receive_of_one_agent_share_its_messages(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))
        await asyncio.sleep(0.005)

    async with serving(fabric.protocol, "both", handle, concurrency=2):
        await fabric.protocol.send_many([task("both", n, key=f"k{n % 5}") for n in range(50)])
        while sum(counts(await fabric.protocol.depth("both"))[:2]):
            for delivery in await fabric.protocol.receive("both", limit=2, wait_s=0.05):
                seen.append(number(delivery))
                await delivery.ack()
        await empty(fabric.protocol, "both")
    assert sorted(seen) == list(range(50))
    for key in range(5):
        assert [n for n in seen if n % 5 == key] == list(range(key, 50, 5))


async def test_two_serves_of_one_agent_in_one_object(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.002)
        seen.append(number(delivery))

    async with serving(fabric.protocol, "twice", handle), serving(fabric.protocol, "twice", handle):
        await fabric.protocol.send_many([task("twice", n, key=f"k{n % 5}") for n in range(40)])
        await empty(fabric.protocol, "twice")
    assert sorted(seen) == list(range(40))
    for key in range(5):
        assert [n for n in seen if n % 5 == key] == list(range(key, 40, 5))


async def test_receive_without_waiting_gives_what_is_there(fabric: Fabric) -> None:
    assert await fabric.protocol.receive("now", wait_s=0) == []
    await fabric.protocol.send(task("now", 1))
    (delivery,) = await fabric.protocol.receive("now", wait_s=0)
    await delivery.ack()
    for limit in (0, -1):
        with pytest.raises((MessageError, ValueError)):
            await fabric.protocol.receive("now", limit=limit, wait_s=0)


async def test_a_handler_may_settle_by_itself(fabric: Fabric) -> None:
    """Then what it returns or raises changes nothing."""
    done: list[int] = []

    async def handle(delivery: Delivery) -> None:
        n = number(delivery)
        done.append(n)
        if n == 0:
            await delivery.ack()
            raise RuntimeError("too late")
        if n == 1:
            await delivery.reject("by hand")
        elif n == 2 and delivery.attempt == 1:
            await delivery.nack(delay_s=0.05)

    await fabric.protocol.send_many([task("hand", n, key="k") for n in range(4)])
    async with serving(fabric.protocol, "hand", handle):
        await empty(fabric.protocol, "hand", dead=1)
    assert done == [0, 1, 2, 2, 3]
    assert (await one_letter(fabric.protocol, "hand")).attempts == 1


async def test_a_handler_sends_to_its_own_lane(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))
        if number(delivery) < 5:
            await fabric.protocol.send(task("loop", number(delivery) + 1, key="k"))

    await fabric.protocol.send(task("loop", 0, key="k"))
    async with serving(fabric.protocol, "loop", handle):
        await until(lambda: len(seen) == 6, "the loop has run")
        await empty(fabric.protocol, "loop")
    assert seen == [0, 1, 2, 3, 4, 5]


async def test_a_request_to_oneself_times_out_and_harms_nobody(fabric: Fabric) -> None:
    """The lane is busy with the handler that asks: no answer can come, and the lane goes on afterwards."""
    outcomes: list[str] = []
    await ask_once(fabric.protocol)

    async def handle(delivery: Delivery) -> None:
        if number(delivery) == 0:
            try:
                await fabric.protocol.request(task("self", 1, key="k"), timeout_s=0.2)
            except TimedOut:
                outcomes.append("timed out")
        else:
            outcomes.append("handled")

    await fabric.protocol.send(task("self", 0, key="k"))
    async with serving(fabric.protocol, "self", handle):
        await until(lambda: len(outcomes) == 2, "both are done")
        await empty(fabric.protocol, "self")
    assert outcomes == ["timed out", "handled"]


async def test_a_delayed_message_whose_time_runs_out_before_it_is_due(fabric: Fabric) -> None:
    await fabric.protocol.send(task("never", 1, ttl_s=0.2), delay_s=0.5)
    letter = await one_letter(fabric.protocol, "never") if fabric.features.finds_expired else None
    await nothing_for(fabric.protocol, "never", 0.7)
    letter = letter or await one_letter(fabric.protocol, "never")
    assert (letter.reason, letter.attempts) == ("expired", 0)


async def test_a_delayed_send_with_an_idempotency_key_is_one_message(fabric: Fabric) -> None:
    for _ in range(3):
        await fabric.protocol.send(task("later", 1), delay_s=0.3, idempotency_key="k")
    assert len(await take(fabric.protocol, "later", 1)) == 1
    await nothing_for(fabric.protocol, "later", 0.5)


async def test_plain_functions_run_in_threads_beside_each_other(fabric: Fabric) -> None:
    worker = Worker("plain", concurrency=3)
    threads: set[int] = set()
    together = threading.Barrier(3, timeout=10)

    @worker.on("task")
    def handle(message: Message, ctx: Context) -> None:
        threads.add(threading.get_ident())
        together.wait()
        ctx.blocking.send("task", "out", {"n": message.content["n"]})

    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
    await fabric.protocol.send_many([task("plain", n, key=f"k{n}") for n in range(3)])
    assert {number(delivery) for delivery in await take(fabric.protocol, "out", 3)} == {0, 1, 2}
    await empty(fabric.protocol, "plain")
    stop.set()
    await job
    assert len(threads) == 3
    assert threading.get_ident() not in threads


async def test_a_thread_that_is_too_slow_is_a_failed_attempt_and_its_result_is_dropped(fabric: Fabric) -> None:
    worker = Worker("slow", concurrency=2)
    attempts: list[int] = []

    @worker.on("task", timeout_s=0.3)
    def handle(message: Message, ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            time.sleep(0.8)
        return f"attempt {ctx.attempt}"

    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
    reply = await fabric.protocol.request(task("slow", 1), timeout_s=10)
    await empty(fabric.protocol, "slow")
    stop.set()
    await job
    assert reply.content == "attempt 2"
    assert attempts == [1, 2]


async def test_a_worker_answers_with_what_its_handler_returns(fabric: Fabric) -> None:
    worker = Worker("math")

    @worker.on("task")
    async def double(message: Message, ctx: Context) -> dict[str, int]:
        return {"double": 2 * message.content["n"]}

    @worker.on("query")
    async def refuse(message: Message, ctx: Context) -> None:
        raise Reject("no queries")

    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
    reply = await fabric.protocol.request(task("math", 21), timeout_s=10)
    await fabric.protocol.send(task("math", 1).replace(type="query"))
    await one_letter(fabric.protocol, "math")
    stop.set()
    await job
    assert (reply.type, reply.content) == ("result", {"double": 42})


async def test_once_of_a_context_survives_the_next_attempt(fabric: Fabric) -> None:
    worker = Worker("careful")
    computed: list[int] = []
    results: list[Any] = []

    @worker.on("task")
    async def handle(message: Message, ctx: Context) -> None:
        async def compute() -> int:
            computed.append(ctx.attempt)
            return 100 * ctx.attempt

        results.append(await ctx.once("cost", compute))
        results.append(await ctx.once("nothing", lambda: None))
        if ctx.attempt < 3:
            raise RuntimeError("again")

    stop = asyncio.Event()
    job = asyncio.create_task(worker.serve(fabric.protocol, stop=stop.wait()))
    await fabric.protocol.send(task("careful", 1))
    await empty(fabric.protocol, "careful")
    stop.set()
    await job
    assert computed == [1]
    assert results == [100, None] * 3


async def test_once_keeps_no_failure(fabric: Fabric) -> None:
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("first time")
        return "fine"

    with pytest.raises(OSError, match="first time"):
        await fabric.protocol.once("s", "n", flaky)
    assert await fabric.protocol.once("s", "n", flaky) == "fine"
    assert await fabric.protocol.once("s", "n", flaky) == "fine"
    assert len(calls) == 2


async def test_a_broadcast_of_a_type_that_a_member_does_not_take(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("picky", ["task"], groups=["g"])
    await fabric.protocol.subscribe("open", groups=["g"])
    await fabric.protocol.broadcast(task("", 1).replace(type="news"), "g")
    await take(fabric.protocol, "open", 1)
    await nothing_for(fabric.protocol, "picky")
    assert (await one_letter(fabric.protocol, "picky")).reason == "unsubscribed"


async def test_competing_queues_retry_and_survive_kills(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("pool", mode="competing")
    first = await fabric.worker("pool", concurrency=4)
    batch = [task("pool", n, ("sleep", 0.05), ("raise", n % 2), key="one") for n in range(24)]
    await fabric.protocol.send_many(batch)
    await until(lambda: len(fabric.journal.ends("pool")) >= 6, "it runs")
    first.kill()
    await fabric.worker("pool", concurrency=4)
    await empty(fabric.protocol, "pool", within_s=30)
    assert {entry.n for entry in fabric.journal.ends("pool") if entry.note == "done"} == set(range(24))


async def test_closing_ends_a_consume(fabric: Fabric) -> None:
    member = await fabric.member()

    async def consume() -> None:
        async for delivery in member.consume("ends"):
            await delivery.ack()

    job = asyncio.create_task(consume())
    await fabric.protocol.send(task("ends"))
    await empty(fabric.protocol, "ends")
    await member.close(0.5)
    (ended,) = await asyncio.wait_for(asyncio.gather(job, return_exceptions=True), 5)
    assert ended is None or isinstance(ended, Closed)


async def test_many_keys_and_many_agents_in_one_object(fabric: Fabric) -> None:
    agents, keys = count(30, 300), count(50, 500)
    seen: dict[str, int] = {}

    async def handle(delivery: Delivery) -> None:
        seen[delivery.message.to] = seen.get(delivery.message.to, 0) + 1

    async with asyncio.TaskGroup() as group:
        jobs = [group.create_task(fabric.protocol.serve(f"a{n}", handle, concurrency=2)) for n in range(agents)]
        for n in range(agents):
            await send_numbered(fabric.protocol, f"a{n}", 2, keys=[f"k{key}" for key in range(keys)])
        await until(lambda: sum(seen.values()) == agents * keys * 2, "all is handled", 40)
        for job in jobs:
            job.cancel()
    assert set(seen.values()) == {keys * 2}


async def test_leases_of_different_length(fabric: Fabric) -> None:
    patient = await fabric.member(lease_s=30.0)
    if not fabric.features.per_record_ack:  # the lesser promise: who holds something of a shard keeps the shard
        await _leases_of_different_length_on_two_queues(fabric, patient)
        return
    await fabric.protocol.send_many([task("mixed", 0, key="a"), task("mixed", 1, key="b")])
    long_held = await take_one(patient, "mixed")
    short_held = await take_one(fabric.protocol, "mixed")
    again = await take_one(fabric.protocol, "mixed", within_s=fabric.takeover_s + 1)
    assert again.message == short_held.message
    await again.ack()
    await long_held.ack()
    await empty(fabric.protocol, "mixed")


async def _leases_of_different_length_on_two_queues(fabric: Fabric, patient: Engine) -> None:
    await fabric.protocol.send_many([task("long", 0), task("short", 1)])
    long_held = await take_one(patient, "long")
    short_held = await take_one(fabric.protocol, "short")
    again = await take_one(fabric.protocol, "short", within_s=fabric.takeover_s + 1)
    assert again.message == short_held.message
    await again.ack()
    await long_held.ack()
    await empty(fabric.protocol, "long")
    await empty(fabric.protocol, "short")


async def test_settings_are_the_defaults_of_what_a_message_leaves_open(fabric: Fabric) -> None:
    member = await fabric.member(message_ttl_s=0.2, handler_timeout_s=0.3, max_attempts=1)
    await member.send(task("short", 1))
    await member.send(task("short", 2, ttl_s=60, key="long"))
    await asyncio.sleep(0.4)  # what is tested is that time passes

    async def hang(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    async with serving(member, "short", hang, timeout_s=0.3):
        await empty(member, "short", dead=2)
    reasons = {letter.reason for letter in await member.dead_letters("short")}
    assert reasons == {"expired", "max_attempts"}


async def test_names_differ_by_case_and_by_every_sign(fabric: Fabric) -> None:
    agents = ["agent", "Agent", "a-gent", "a_gent", "a.gent", "agent.", "AGENT"]
    await fabric.protocol.send_many([task(agent, n) for n, agent in enumerate(agents)])
    for n, agent in enumerate(agents):
        assert [number(delivery) for delivery in await take(fabric.protocol, agent, 1)] == [n]
    assert list(await fabric.protocol.agents()) == sorted(agents)


async def test_keys_are_compared_exactly(fabric: Fabric) -> None:
    """Keys that a careless store would fold together (case, spaces, accents) are lanes of their own."""
    keys = ["k", "K", "k ", " k", "\uff4b", "k\u0301", "\u00e9", "e\u0301", "k%", "k_"]
    await fabric.protocol.send_many([task("exact", n, key=key) for n, key in enumerate(keys)])
    held: list[Delivery] = []
    while len(held) < len(keys):
        got = await fabric.protocol.receive("exact", limit=20, wait_s=2)
        assert got, f"only {len(held)} of {len(keys)} keys at once"
        held += got
    for delivery in held:
        await delivery.ack()
    await empty(fabric.protocol, "exact")
