"""A call that is cancelled, wherever it waits, loses nothing, doubles nothing, and leaves an object that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from itertools import count
from typing import Any, Final

from hivewire.delivery import Delivery
from hivewire.errors import AlreadySettled
from hivewire.message import UNORDERED
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import nothing_for, number, serving, take, take_one, task
from hivewire.testing.conformance.waiting import until

_MOST_PLACES: Final = 40


class Cut:
    """Awaits a coroutine, and cancels its task at the place where it waits for the n-th time: at once, or in the moment
    in which what it waits for is there (`late`), so that this is lost."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], place: int, *, late: bool) -> None:
        self._coroutine = coroutine
        self._place = place
        self._late = late
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._coroutine.__await__()
        resume: Callable[[], Any] = steps.__next__
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self._place:
                self._cancel(waits_for)
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                resume = _throwing(steps, error)
            else:
                resume = steps.__next__

    def _cancel(self, waits_for: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._late and waits_for is not None:
            waits_for._asyncio_future_blocking = False  # as if nobody had awaited it yet
            waits_for.add_done_callback(lambda _: task.cancel())
            waits_for._asyncio_future_blocking = True
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


def _throwing(steps: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


async def cut_everywhere(
    call: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[Any], Awaitable[object]]
) -> None:
    """Make the call again and again, cut at one place after another, and check each time. `check` is given what it
    returned; None when it was cancelled."""
    for late in (False, True):
        for place in range(1, _MOST_PLACES):
            cut = Cut(call(), place, late=late)
            calling = asyncio.ensure_future(_awaited(cut))
            await asyncio.wait([calling])
            await check(None if calling.cancelled() else calling.result())
            if cut.waits < place:
                break


async def _awaited(cut: Cut) -> Any:
    return await cut


async def test_a_send(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    message = task("cut", 0)

    async def send() -> None:
        nonlocal message
        message = task("cut", next(numbers))
        await member.send(message)

    async def arrives_once(_: object) -> None:
        await member.send(message)
        assert [(number(each), each.attempt) for each in await take(member, "cut", 1)] == [(message.content["n"], 1)]

    await cut_everywhere(send, arrives_once)
    await nothing_for(member, "cut")


async def test_a_send_of_many(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    batch = [task("cut")]

    async def send() -> None:
        batch[:] = [task("cut", next(numbers)) for _ in range(3)]
        await member.send_many(batch)

    async def arrive_once(_: object) -> None:
        await member.send_many(batch)
        assert [number(each) for each in await take(member, "cut", 3)] == [each.content["n"] for each in batch]

    await cut_everywhere(send, arrive_once)
    await nothing_for(member, "cut")


async def test_a_receive(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    sent: list[int] = []

    async def receive() -> list[Delivery]:
        return await member.receive("cut", limit=2, wait_s=2.0)

    async def send() -> None:
        sent[:] = [next(numbers) for _ in range(4)]
        await member.send_many([task("cut", n, key=f"k{n % 2}") for n in sent])

    async def all_are_there(received: list[Delivery] | None) -> None:
        for delivery in received or ():
            await delivery.ack()
        got = [*(received or ()), *await take(member, "cut", 4 - len(received or ()))]
        assert [(number(each), each.attempt) for each in sorted(got, key=number)] == [(n, 1) for n in sent]
        for key in ("k0", "k1"):
            assert (of_key := [number(each) for each in got if each.message.key == key]) == sorted(of_key)
        await send()

    await send()
    await cut_everywhere(receive, all_are_there)
    await take(member, "cut", 4)


async def test_an_acknowledgement(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    await member.send(task("cut", next(numbers)))
    held = [await take_one(member, "cut")]

    async def ack() -> None:
        await held[0].ack()

    async def is_settled(_: object) -> None:
        await _settled(held[0].ack())
        await member.send(task("cut", wanted := next(numbers)))
        held[0] = await take_one(member, "cut")
        assert (number(held[0]), held[0].attempt) == (wanted, 1)

    await cut_everywhere(ack, is_settled)
    await _settled(held[0].ack())
    await nothing_for(member, "cut")


async def test_a_failed_attempt(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    await member.send(task("cut", next(numbers)))
    held = [await take_one(member, "cut")]

    async def nack() -> None:
        await held[0].nack(delay_s=0.01)

    async def comes_again(_: object) -> None:
        await _settled(held[0].nack(delay_s=0.01))
        again = await take_one(member, "cut")
        assert (number(again), again.attempt) == (number(held[0]), 2)
        await again.ack()
        await member.send(task("cut", next(numbers)))
        held[0] = await take_one(member, "cut")

    await cut_everywhere(nack, comes_again)
    await _settled(held[0].ack())
    await nothing_for(member, "cut")


async def _settled(settling: Awaitable[None]) -> None:
    """As who does not know whether it is."""
    try:
        await settling
    except AlreadySettled:
        return


async def test_a_request(fabric: Fabric) -> None:
    member = fabric.protocol
    other = await fabric.member()

    async def answer(delivery: Delivery) -> None:
        await other.reply(delivery.message, number(delivery))

    async def request() -> None:
        await member.request(task("cut", 1, key=UNORDERED), timeout_s=30)

    async def the_next_is_answered(_: object) -> None:
        reply = await member.request(task("cut", 2, key=UNORDERED), timeout_s=30)
        assert reply.content == 2
        assert member._parts is not None
        assert not member._parts.replies._waiting

    async with serving(other, "cut", answer):
        await cut_everywhere(request, the_next_is_answered)


async def test_a_broadcast(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    await member.subscribe("cut", groups=["cuts"])
    message = task("cuts")

    async def broadcast() -> None:
        nonlocal message
        message = task("cuts", next(numbers))
        await member.broadcast(message, "cuts")

    async def arrives_once(_: object) -> None:
        await member.broadcast(message, "cuts")
        assert [number(each) for each in await take(member, "cut", 1)] == [message.content["n"]]

    await cut_everywhere(broadcast, arrives_once)
    await nothing_for(member, "cut")


async def test_an_effect(fabric: Fabric) -> None:
    """What has happened does not happen again, and nobody waits for the lease of who was cancelled."""
    member, numbers = await fabric.member(lease_s=30.0), count()
    happened: list[int] = []

    async def happen() -> int:
        await asyncio.sleep(0)
        happened.append(n)
        return n

    n = next(numbers)

    async def once() -> int:
        result: int = await member.once("cut", str(n), happen)
        return result

    async def happens_once(_: object) -> None:
        nonlocal n
        async with asyncio.timeout(20.0):
            assert await member.once("cut", str(n), happen) == n
        assert happened.count(n) == 1
        n = next(numbers)

    await cut_everywhere(once, happens_once)


async def test_a_serve(fabric: Fabric) -> None:
    member, numbers = fabric.protocol, count()
    handled: list[int] = []
    wanted: list[int] = []

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0.001)
        handled.append(number(delivery))

    async def send() -> None:
        wanted[:] = [next(numbers) for _ in range(4)]
        await member.send_many([task("cut", n, key=f"k{n % 2}") for n in wanted])

    async def serve() -> None:
        all_done = asyncio.ensure_future(until(lambda: set(wanted) <= set(handled), "all are handled"))
        try:
            await member.serve("cut", handle, concurrency=2, stop=all_done)
        finally:
            all_done.cancel()

    async def the_rest_is_there(_: object) -> None:
        async with serving(member, "cut", handle):
            await until(lambda: set(wanted) <= set(handled), "all are handled")
        assert len(handled) <= len(set(handled)) + 2, "more came again than ran"
        handled.clear()
        assert member._parts is not None
        assert not member._parts.consumers._stops
        await send()

    await send()
    await cut_everywhere(serve, the_rest_is_there)
