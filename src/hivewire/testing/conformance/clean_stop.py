"""Promise 12: a clean stop loses nothing and repeats nothing that was finished; after a kill little comes again."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import Closed
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import counts, empty, number, send_numbered, serving, take, take_one, task
from hivewire.testing.conformance.waiting import count, until
from hivewire.testing.leaks import Census


async def test_sigterm_is_clean_and_nothing_is_done_twice(fabric: Fabric) -> None:
    keys = [f"k{n}" for n in range(20)]
    first = await fabric.worker("term", concurrency=6)
    await send_numbered(fabric.protocol, "term", 6, keys=keys, steps=[("sleep", 0.03)])
    await until(lambda: len(fabric.journal.ends("term")) >= 30, "it runs")
    first.terminate()
    assert await first.ended() == 0
    open_ones = len(fabric.journal.starts("term")) - len(fabric.journal.ends("term"))
    assert open_ones == 0, "it did not let its handlers finish"
    began = fabric.now()
    await fabric.worker("term", concurrency=6)
    await empty(fabric.protocol, "term", within_s=30)
    starts = fabric.journal.starts("term")
    assert len(starts) == len({entry.id for entry in starts}) == 120
    assert {entry.attempt for entry in starts} == {1}
    following = min(entry.at for entry in starts if entry.at > began)
    assert following - began < fabric.lease_s + 1.0, "what was given back waits for a lease to end"


async def test_a_kill_repeats_only_what_was_unfinished(fabric: Fabric) -> None:
    first = await fabric.worker("kill", concurrency=4)
    await send_numbered(fabric.protocol, "kill", 8, keys=["a", "b", "c", "d"], steps=[("sleep", 0.05)])
    await until(lambda: len(fabric.journal.ends("kill")) >= 12, "it runs")
    first.kill()
    await first.ended()
    await fabric.worker("kill", concurrency=4)
    await empty(fabric.protocol, "kill", within_s=30)
    starts = fabric.journal.starts("kill")
    # Of each lane one may have been running, and one done whose acknowledgement was on its way.
    assert len(starts) - len({entry.id for entry in starts}) <= 8
    done = {(entry.key, entry.n) for entry in fabric.journal.ends("kill") if entry.note == "done"}
    assert len(done) == 32


async def test_close_lets_what_runs_finish(fabric: Fabric) -> None:
    member = await fabric.member()
    started = asyncio.Event()
    finished: list[int] = []

    async def handle(delivery: Delivery) -> None:
        started.set()
        await asyncio.sleep(0.3)
        finished.append(number(delivery))

    await send_numbered(fabric.protocol, "finish", 3)
    job = asyncio.create_task(member.serve("finish", handle))
    await started.wait()
    await member.close(5)
    (ended,) = await asyncio.wait_for(asyncio.gather(job, return_exceptions=True), 5)
    assert ended is None or isinstance(ended, Closed)
    assert finished == [0]
    assert [number(delivery) for delivery in await take(fabric.protocol, "finish", 2)] == [1, 2]


async def test_what_does_not_finish_in_time_is_given_back_at_once(fabric: Fabric) -> None:
    member = await fabric.member(lease_s=30.0)
    started = asyncio.Event()

    async def hang(delivery: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    await fabric.protocol.send(task("hang", 1))
    stop = asyncio.Event()
    job = asyncio.create_task(member.serve("hang", hang, stop=stop.wait(), drain_s=0.2))
    await started.wait()
    stop.set()
    await asyncio.wait_for(job, 5)
    again = await take_one(fabric.protocol, "hang", within_s=5)
    await again.ack()
    await empty(fabric.protocol, "hang")


async def test_close_gives_bare_deliveries_back(fabric: Fabric) -> None:
    member = await fabric.member(lease_s=30.0)
    await send_numbered(fabric.protocol, "bare", 2)
    held = await take_one(member, "bare")
    assert number(held) == 0
    await member.close(0.2)
    assert [number(delivery) for delivery in await take(fabric.protocol, "bare", 2, within_s=5)] == [0, 1]


async def test_concurrent_close_is_idempotent(fabric: Fabric) -> None:
    member = await fabric.member()
    await member.send(task("close"))
    await asyncio.gather(*(member.close() for _ in range(5)))
    await member.close()
    await take(fabric.protocol, "close", 1)


async def test_close_wakes_who_waits(fabric: Fabric) -> None:
    member = await fabric.member()
    waiting = [
        asyncio.create_task(member.receive("silent", wait_s=30)),
        asyncio.create_task(member.request(task("silent2"), timeout_s=30)),
    ]
    await fabric.inside("other")
    await member.close(0.5)
    _, pending = await asyncio.wait(waiting, timeout=5)
    for job in pending:
        job.cancel()
    received, asked = await asyncio.gather(*waiting, return_exceptions=True)
    assert not pending
    assert received == [] or isinstance(received, Closed)
    assert isinstance(asked, Closed)


async def test_every_send_confirmed_before_close_is_delivered(fabric: Fabric) -> None:
    total = count(2_000, 10_000)
    member = await fabric.member()
    confirmed: list[int] = []

    async def send(n: int) -> None:
        await member.send(task("flood", n, key=f"k{n % 50}"))
        confirmed.append(n)

    jobs = [asyncio.create_task(send(n)) for n in range(total)]
    await until(lambda: len(confirmed) > total // 20, "it sends")
    await member.close(0.5)
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, Closed) for outcome in outcomes), {
        repr(outcome) for outcome in outcomes if outcome is not None
    }
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    async with serving(fabric.protocol, "flood", handle, concurrency=16):
        await empty(fabric.protocol, "flood", within_s=40)
    assert len(set(seen)) == len(seen)
    missing = set(confirmed) - set(seen)
    assert not missing


async def test_a_protocol_that_was_never_used_closes(fabric: Fabric) -> None:
    await fabric.connect().close()
    async with fabric.connect():
        pass
    unopened = fabric.connect()
    await unopened.send(task("lazy"))
    await unopened.close()
    await take(fabric.protocol, "lazy", 1)


async def test_a_life_of_a_protocol_leaves_nothing_behind(fabric: Fabric) -> None:
    """Lives that use everything once: no task, thread or descriptor more after the last than after the first."""

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0)

    await fabric.inside("echo")
    before: Census | None = None
    for life in range(count(5, 10)):
        if life == 1:  # what stays open for as long as the others live is open by now
            before = Census.take()
        member = await fabric.member()
        await member.subscribe(f"life{life}", ["task"], groups=["all"])
        await member.broadcast(task("", 1), "all")
        await member.broadcast(task("", 2), "all", durable=False)
        async with serving(member, f"life{life}", handle):
            await member.request(task("echo", 1, ("reply", 1)), timeout_s=10)
        await member.receive("nobody", wait_s=0)
        await member.health()
        await member.dead_letters()
        await member.close(1)
        await member.close(1)
    assert before is not None
    await before.check()


async def test_serve_stops_between_messages_when_told(fabric: Fabric) -> None:
    stop = asyncio.Event()
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))
        if len(seen) == 5:
            stop.set()
        await asyncio.sleep(0.001)

    await send_numbered(fabric.protocol, "stop", 50)
    await asyncio.wait_for(fabric.protocol.serve("stop", handle, stop=stop.wait()), 10)
    assert 5 <= len(seen) <= 7
    left = counts(await fabric.protocol.depth("stop"))
    assert left == (50 - len(seen), 0, 0, 0)
    rest = [number(delivery) for delivery in await take(fabric.protocol, "stop", left[0])]
    assert seen + rest == list(range(50))


async def test_a_serve_that_is_cancelled_while_it_drains_gives_all_back(fabric: Fabric) -> None:
    """As if it had been cancelled before it was told to stop."""
    member, other = await fabric.member(lease_s=30.0), await fabric.member(lease_s=30.0)
    started, stop = asyncio.Event(), asyncio.Event()

    async def handle(_: Delivery) -> None:
        started.set()
        await asyncio.Event().wait()

    await send_numbered(fabric.protocol, "drains", 3)
    serving = asyncio.create_task(member.serve("drains", handle, stop=stop.wait(), drain_s=60.0))
    await started.wait()
    stop.set()
    await asyncio.sleep(0.1)  # it waits for the handler
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    async with asyncio.timeout(20.0):
        assert [number(delivery) for delivery in await take(other, "drains", 3)] == [0, 1, 2]
        await member.close()


async def test_the_same_object_serves_again_after_a_stop(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    for n in range(4):
        await fabric.protocol.send(task("again", n))
        async with serving(fabric.protocol, "again", handle):
            await until(lambda n=n: len(seen) == n + 1, "the next one", 5)  # type: ignore[misc]
    assert seen == [0, 1, 2, 3]


async def test_closing_one_member_does_not_disturb_another(fabric: Fabric) -> None:
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.002)
        seen.append(number(delivery))

    await send_numbered(fabric.protocol, "pair", 20, keys=[f"k{n}" for n in range(5)])
    async with serving(fabric.protocol, "pair", handle, concurrency=2):
        for _ in range(3):
            member = await fabric.member()
            other = asyncio.create_task(member.serve("pair", handle, concurrency=2))
            goal = min(100, len(seen) + 10)
            await until(lambda goal=goal: len(seen) >= goal, "work goes on")  # type: ignore[misc]
            await member.close(2)
            (ended,) = await asyncio.wait_for(asyncio.gather(other, return_exceptions=True), 5)
            assert ended is None or isinstance(ended, Closed)
        await empty(fabric.protocol, "pair")
    assert len(seen) == 100
