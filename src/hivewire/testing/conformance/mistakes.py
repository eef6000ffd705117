"""What users do by mistake stops nobody else and loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hivewire.coordination.worker import Context, Worker
from hivewire.delivery import Delivery
from hivewire.errors import AlreadySettled, Closed, MessageError, SettingsError, TimedOut, Unsupported
from hivewire.message import Message
from hivewire.protocol import Receipt
from hivewire.rules.retry import Retry
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    empty,
    letter_of_the_work,
    nothing_for,
    number,
    one_letter,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import until

_QUICK = Retry(max_attempts=3, first_s=0.01, most_s=0.05)


class _Fatal(BaseException):
    """Not an `Exception`."""


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), _Fatal("no"), SystemExit(3)], ids=["cancelled", "base", "exit"]
)
@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_handler_that_raises_what_it_should_not_fails_like_others(
    fabric: Fabric, error: BaseException, concurrency: int
) -> None:
    starts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        starts.append(number(delivery))
        if number(delivery) == 0:
            raise error

    await fabric.protocol.send_many([task("odd", n, key=f"k{n}") for n in range(5)])
    async with serving(fabric.protocol, "odd", handle, concurrency=concurrency, retry=lambda _type: _QUICK):
        await empty(fabric.protocol, "odd", dead=1)
    assert starts.count(0) == 3
    assert sorted(set(starts)) == [0, 1, 2, 3, 4]


async def test_a_handler_that_is_a_plain_wrapper_of_an_async_one_is_awaited(fabric: Fabric) -> None:
    ran: list[int] = []
    worker = Worker("wrapped")

    async def inner(message: Message, ctx: Context) -> None:
        ran.append(message.content["n"])

    def wrapper(message: Message, ctx: Context) -> Awaitable[None]:
        return inner(message, ctx)

    worker.on("task")(wrapper)
    stop = asyncio.Event()
    serve = asyncio.ensure_future(worker.serve(fabric.protocol, stop.wait()))
    await fabric.protocol.send(task("wrapped", 7))
    await empty(fabric.protocol, "wrapped")
    stop.set()
    await serve
    assert ran == [7]


async def test_odd_texts_and_delays_stop_no_other_settlement(fabric: Fabric) -> None:
    first = await _sent_and_taken(fabric, 0)
    second = await _sent_and_taken(fabric, 1)
    third = await _sent_and_taken(fabric, 2)
    for delay_s in ("5", float("nan"), -1.0):
        with pytest.raises(MessageError):
            await first.nack(delay_s)  # type: ignore[arg-type]  # on purpose
    await first.reject("a lone surrogate: \ud800")
    await second.nack(error=ValueError("another: \udcff"), delay_s=0)
    await third.ack()
    letter = await one_letter(fabric.protocol, "texts")
    assert letter.reason == "rejected"
    assert (await take_one(fabric.protocol, "texts")).attempt == 2


async def _sent_and_taken(fabric: Fabric, n: int) -> Delivery:
    await fabric.protocol.send(task("texts", n, key=f"k{n}"))
    return await take_one(fabric.protocol, "texts")


@pytest.mark.slow
async def test_what_consume_has_taken_ahead_keeps_its_lease_and_does_not_count(fabric: Fabric) -> None:
    member = await fabric.member(lease_s=1)
    await member.send_many([task("ahead", n, key=f"k{n}") for n in range(4)])
    seen: list[tuple[int, int]] = []
    deliveries = member.consume("ahead", prefetch=4)
    async for delivery in deliveries:
        async with delivery:
            await asyncio.sleep(0.7)  # the work; four times this is longer than the lease
            seen.append((number(delivery), delivery.attempt))
        if len(seen) == 3:
            break
    await deliveries.aclose()  # type: ignore[attr-defined]  # a generator
    assert sorted(attempt for _, attempt in seen) == [1, 1, 1]
    [last] = await take(member, "ahead", 1)
    assert last.attempt == 1


async def test_what_a_plain_function_does_by_its_context_is_done_without_await(fabric: Fabric) -> None:
    worker = Worker("plain")
    computed: list[int] = []

    def compute() -> int:
        computed.append(threading.get_ident())
        return 7

    async def look_up() -> int:
        return 8

    @worker.on("task", retry=_QUICK)
    def handle(message: Message, ctx: Context) -> None:
        results: list[Any] = [ctx.once("sum", compute), ctx.once("looked up", look_up)]
        receipt: Any = ctx.send("task", "out", {"n": results})
        assert isinstance(receipt, Receipt)
        ctx.progress(done=0.5)  # type: ignore[unused-coroutine]  # in a thread it is none
        ctx.reply({"n": ctx.attempt})  # type: ignore[unused-coroutine]  # nor is this
        if ctx.attempt == 1:
            raise ValueError("once more")

    asked = task("plain").replace(metadata={"progress_to": "watcher"}, sender="asker")
    stop = asyncio.Event()
    serve = asyncio.ensure_future(worker.serve(fabric.protocol, stop.wait()))
    await fabric.protocol.send(asked)
    [out] = await take(fabric.protocol, "out", 1)
    [answer] = await take(fabric.protocol, "asker", 1)
    await take(fabric.protocol, "watcher", 2)
    await empty(fabric.protocol, "plain")
    stop.set()
    await serve
    assert out.message.content == {"n": [7, 8]}
    assert (answer.message.type, answer.message.in_reply_to) == ("response", asked.id)
    await nothing_for(fabric.protocol, "out", 0.3)  # the second attempt has sent the same once more
    assert len(computed) == 1
    assert threading.get_ident() not in computed


@pytest.mark.parametrize("place", ["not a name", 5, "~group/team", "coder/" + "x" * 300], ids=repr)
async def test_the_work_is_not_done_for_who_cannot_be_answered(fabric: Fabric, place: object) -> None:
    """It would be done, and paid for, at each attempt, and end as a failure of the handler all the same."""
    worker = Worker("asked")
    begun: list[str] = []

    @worker.on("task", retry=_QUICK)
    async def handle(message: Message, ctx: Context) -> int:
        begun.append(message.id)
        return 1

    asked = task("asked").replace(metadata={"reply_to": place})
    letter = await letter_of_the_work(fabric.protocol, worker, asked)
    assert (letter.id, letter.reason, begun) == (asked.id, "rejected", [])
    assert "reply_to" in letter.error


@pytest.mark.parametrize("result", [{1, 2}, {"n": float("nan")}, b"\0" * (2 << 20)], ids=["set", "nan", "large"])
async def test_a_result_that_cannot_be_sent_is_not_worked_for_again(fabric: Fabric, result: object) -> None:
    worker = Worker("wrong")
    begun: list[str] = []

    @worker.on("task", retry=_QUICK)
    async def handle(message: Message, ctx: Context) -> object:
        begun.append(message.id)
        return result

    asked = task("wrong").replace(metadata={"reply_to": "asker"})
    letter = await letter_of_the_work(fabric.protocol, worker, asked)
    assert (letter.id, letter.reason, begun) == (asked.id, "rejected", [asked.id])
    assert "the handler's result cannot be sent" in letter.error


async def test_a_str_is_no_list_of_types_or_groups(fabric: Fabric) -> None:
    protocol = fabric.protocol
    bad: list[Callable[[], Awaitable[Any]]] = [
        lambda: protocol.subscribe("letters", "task"),
        lambda: protocol.subscribe("letters", groups="team"),
        lambda: protocol.subscribe("letters", mode="competeing"),  # type: ignore[arg-type]  # on purpose
        lambda: protocol.subscribe("letters", ["\x00"]),
        lambda: protocol.subscribe("letters", None),  # type: ignore[arg-type]  # on purpose, as those below
        lambda: protocol.subscribe("letters", groups=5),  # type: ignore[arg-type]
        lambda: protocol.request("letters"),  # type: ignore[arg-type]
        lambda: protocol.reply(None, "answer"),  # type: ignore[arg-type]
        lambda: protocol.broadcast({}, "team"),  # type: ignore[arg-type]
        lambda: protocol.replay(5),  # type: ignore[arg-type]
        lambda: protocol.cancel_delayed(None),  # type: ignore[arg-type]
        lambda: protocol.set_value("name", "a str", 0),  # type: ignore[arg-type]
        lambda: protocol.set_value("name", b"", None),  # type: ignore[arg-type]
        lambda: protocol.set_value("name", b"", 0, ttl_s=float("nan")),
        lambda: protocol.close("soon"),  # type: ignore[arg-type]
        lambda: protocol.receive("letters", limit=0),
        lambda: protocol.receive("letters", wait_s=float("nan")),
        lambda: protocol.send(task("letters"), delay_s=float("nan")),
        lambda: protocol.send(task("letters"), delay_s=None),  # type: ignore[arg-type]
    ]
    for call in bad:
        with pytest.raises(MessageError):
            await call()
    with pytest.raises(SettingsError):
        await protocol.serve("letters", lambda _delivery: asyncio.sleep(0), concurrency=0)
    with pytest.raises(MessageError):
        await protocol.serve("letters", lambda _delivery: asyncio.sleep(0), drain_s=-1)
    assert (await protocol.value("name")).version == 0


async def test_unsubscribing_a_type_that_was_never_named_leaves_all(fabric: Fabric) -> None:
    await fabric.protocol.unsubscribe("every", ["event"])
    await fabric.protocol.send(task("every"))
    assert number((await take(fabric.protocol, "every", 1))[0]) == 0


async def test_a_worker_that_comes_to_handle_every_type_gets_them(fabric: Fabric) -> None:
    await fabric.protocol.subscribe("grown", ["task"])
    got: list[str] = []
    worker = Worker("grown")

    @worker.on("*")
    async def handle(message: Message, ctx: Context) -> None:
        got.append(message.type)

    stop = asyncio.Event()
    serve = asyncio.ensure_future(worker.serve(fabric.protocol, stop.wait()))
    await until(lambda: worker._loop is not None, "the worker serves")
    await fabric.protocol.send(task("grown").replace(type="query"))
    await empty(fabric.protocol, "grown")
    stop.set()
    await serve
    assert got == ["query"]


async def test_a_full_member_that_is_away_holds_up_neither_broadcasts_nor_leaving(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=3)
    await member.subscribe("away", groups=["crowd"])
    await member.subscribe("here", groups=["crowd"])
    for n in range(8):
        await member.broadcast(task("", n), "crowd")
    assert [number(delivery) for delivery in await take(member, "here", 8)] == list(range(8))
    await asyncio.wait_for(member.unsubscribe("away", groups=["crowd"]), 10)
    assert [number(delivery) for delivery in await take(member, "away", 8)] == list(range(8))


async def test_an_event_can_be_a_reply_and_one_request_is_asked_once_at_a_time(fabric: Fabric) -> None:
    async def handle(delivery: Delivery) -> None:
        await fabric.protocol.reply(delivery.message, "done", type="event")

    async with serving(fabric.protocol, "asked", handle):
        question = task("asked")
        assert (await fabric.protocol.request(question, timeout_s=10)).content == "done"
    waiting = asyncio.ensure_future(fabric.protocol.request(task("nobody").replace(id="same"), timeout_s=0.5))
    replies = (await fabric.protocol._ready()).replies
    await until(lambda: "same" in replies._waiting, "the request waits")
    with pytest.raises(MessageError):
        await fabric.protocol.request(task("nobody").replace(id="same"), timeout_s=0.5)
    with pytest.raises(TimedOut, match=r"no reply within 0\.5 s"):
        await waiting


async def test_closing_while_the_first_call_connects_leaves_nothing_behind(fabric: Fabric) -> None:
    member = fabric.connect()
    sending = asyncio.ensure_future(member.send(task("early")))
    await asyncio.sleep(0)
    await member.close(1)
    [ended] = await asyncio.gather(sending, return_exceptions=True)
    assert isinstance(ended, Receipt | Closed), ended  # stored before, or refused; the leak check sees the rest


async def test_a_delivery_may_be_left_in_another_task(fabric: Fabric) -> None:
    await fabric.protocol.send(task("moved"))
    delivery = await take_one(fabric.protocol, "moved")
    await asyncio.create_task(delivery.__aenter__())
    await delivery.__aexit__(None, None, None)
    await empty(fabric.protocol, "moved")
    with pytest.raises(AlreadySettled):
        await delivery.ack()


async def test_a_receive_that_does_not_wait_may_be_cancelled_anywhere(fabric: Fabric) -> None:
    """What the store has taken for it goes back, although its member lives on and never asks again."""
    other = await fabric.member()
    for turns in range(20):
        await fabric.protocol.send(task("hasty", turns, key=f"k{turns}"))
        asking = asyncio.ensure_future(fabric.protocol.receive("hasty", wait_s=0))
        await asyncio.sleep(turns * 0.0002)  # another moment of the call each time
        asking.cancel()
        [got] = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(got, list) and got:
            await got[0].ack()
        else:
            assert number((await take(other, "hasty", 1))[0]) == turns


async def test_messages_to_send_may_come_from_a_generator(fabric: Fabric) -> None:
    receipts = await fabric.protocol.send_many(task("made", n) for n in range(3))  # type: ignore[arg-type]  # on purpose
    assert len(receipts) == 3
    assert [number(taken) for taken in await take(fabric.protocol, "made", 3)] == [0, 1, 2]
    for wrong in (task("made", 3), None):
        with pytest.raises(MessageError, match="a list of messages"):
            await fabric.protocol.send_many(wrong)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5"])
async def test_what_is_no_duration_is_refused_before_anything_is_done(fabric: Fabric, seconds: Any) -> None:
    protocol, message = fabric.protocol, task("timed", 0)
    for call in (
        lambda: protocol.send(message, timeout_s=seconds),
        lambda: protocol.send_many([message], timeout_s=seconds),
        lambda: protocol.purge_dead("timed", older_than_s=seconds),
        lambda: protocol.cleanup(seconds),
    ):
        with pytest.raises(MessageError, match="a number of seconds"):
            await call()
    assert (await protocol.depth("timed")).ready == 0


async def test_a_listing_that_cannot_be_is_refused(fabric: Fabric) -> None:
    protocol = fabric.protocol
    for call in (protocol.dead_letters, protocol.delayed):
        for wrong in ({"agent": "no name"}, {"limit": 0}, {"limit": -1}, {"after": "garbage"}, {"after": 5}):
            with pytest.raises(MessageError):
                await call(**{"agent": "listed"} | wrong)
    with pytest.raises(MessageError, match="the name of an agent or a list of ids"):
        await protocol.replay(None)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(MessageError, match="can be sent"):
        await protocol.schedule("nothing", 60, None)  # type: ignore[arg-type]  # on purpose


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_a_handler_that_ends_in_an_odd_way_is_counted_like_others(fabric: Fabric) -> None:
    worker = Worker("mute", concurrency=2)

    @worker.on("mute", retry=_QUICK)
    async def mute(message: Message, ctx: Context) -> None:
        raise _Mute

    @worker.on("stop", retry=_QUICK)
    def stop_iteration(message: Message, ctx: Context) -> None:
        raise StopIteration

    @worker.on("cancel", retry=_QUICK)
    async def cancel(message: Message, ctx: Context) -> None:
        running = asyncio.current_task()
        assert running is not None
        running.cancel()
        await asyncio.sleep(60)

    @worker.on("leave", retry=_QUICK)
    def leave(message: Message, ctx: Context) -> None:
        raise SystemExit(4)

    stop = asyncio.Event()
    serve = asyncio.ensure_future(worker.serve(fabric.protocol, stop.wait()))
    for n, type in enumerate(("mute", "stop", "leave", "cancel")):
        await fabric.protocol.send(task("mute", n, key=f"k{n}").replace(type=type))
    await empty(fabric.protocol, "mute", dead=4)
    letters = await fabric.protocol.dead_letters("mute")
    assert {letter.message.type: letter.attempts for letter in letters if letter.message} == {
        "mute": 3,
        "stop": 3,
        "leave": 3,
        "cancel": 3,
    }
    stop.set()
    await serve


async def test_another_event_loop_is_told_to_connect_itself(fabric: Fabric) -> None:
    await fabric.protocol.send(task("loops", 0))

    async def elsewhere() -> None:
        for call in (lambda: fabric.protocol.send(task("loops", 1)), lambda: fabric.protocol.receive("loops")):
            with pytest.raises(Unsupported, match="another event loop"):
                await call()

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert number((await take(fabric.protocol, "loops", 1))[0]) == 0
