"""Steps that many cases share: numbered messages, taking them, serving for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from hivewire.backend import Depth
from hivewire.coordination.worker import Worker
from hivewire.delivery import Delivery
from hivewire.errors import DeliveryError
from hivewire.message import Message
from hivewire.protocol import DeadLetter, Protocol, Receipt
from hivewire.testing.conformance import waiting
from hivewire.testing.conformance.waiting import eventually

Step = Sequence[object]


def task(to: str, n: int = 0, *steps: Step, key: str | None = None, sender: str = "tester", **fields: Any) -> Message:
    """Message number `n`, whose obedient handler does the steps."""
    content = {"n": n, "do": [list(step) for step in steps]}
    return Message(type="task", sender=sender, to=to, key=key, content=content, **fields)


async def send_numbered(
    protocol: Protocol, to: str, each: int, *, keys: Sequence[str] = ("k",), steps: Sequence[Step] = ()
) -> list[Receipt]:
    """Numbers 0 … `each` - 1 on every key, the keys mixed."""
    batch = [task(to, n, *steps, key=key) for n in range(each) for key in keys]
    receipts: list[Receipt] = []
    for start in range(0, len(batch), 500):
        receipts += await protocol.send_many(batch[start : start + 500])
    return receipts


def number(delivery: Delivery) -> int:
    return int(delivery.message.content["n"])


async def take(protocol: Protocol, agent: str, wanted: int, *, within_s: float = 15.0) -> list[Delivery]:
    """Receive and acknowledge until there were `wanted`."""
    taken: list[Delivery] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s * waiting.patience
    while len(taken) < wanted:
        left = deadline - loop.time()
        assert left > 0, f"{len(taken)} of {wanted} messages for {agent} within {within_s} s"
        for delivery in await protocol.receive(agent, limit=wanted - len(taken), wait_s=min(left, 2.0)):
            await delivery.ack()
            taken.append(delivery)
    return taken


async def take_one(protocol: Protocol, agent: str, *, within_s: float = 15.0) -> Delivery:
    """The next delivery, not settled."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s * waiting.patience
    while True:
        left = deadline - loop.time()
        assert left > 0, f"no message for {agent} within {within_s} s"
        got = await protocol.receive(agent, limit=1, wait_s=min(left, 2.0))
        if got:
            return got[0]


async def nothing_for(protocol: Protocol, agent: str, wait_s: float = 0.3) -> None:
    """There is nothing to receive, and nothing comes within `wait_s`."""
    got = await protocol.receive(agent, limit=10, wait_s=wait_s)
    assert not got, f"unexpected: {[delivery.message for delivery in got]}"


async def holds(protocol: Protocol, agent: str, wanted: tuple[int, int, int, int], *, within_s: float = 20.0) -> None:
    """Wait until the agent's queue holds this many ready, in flight, scheduled and dead: a store may count what was
    committed last."""

    async def held() -> tuple[int, int, int, int]:
        return counts(await protocol.depth(agent))

    await eventually(held, wanted, within_s)


async def empty(protocol: Protocol, agent: str, *, dead: int = 0, within_s: float = 20.0) -> None:
    """Wait until the agent's queue holds nothing but `dead` dead letters."""
    await holds(protocol, agent, (0, 0, 0, dead), within_s=within_s)


async def drained(protocol: Protocol, agent: str, *, within_s: float = 20.0) -> None:
    """Wait until nothing of the agent waits or runs, however many dead letters there are."""

    async def held() -> int:
        return sum(counts(await protocol.depth(agent))[:3])

    await eventually(held, 0, within_s)


async def forgotten(protocol: Protocol, agent: str) -> bool:
    try:
        await protocol.forget(agent)
    except DeliveryError:  # what received for it has not ended yet
        return False
    return True


def counts(depth: Depth) -> tuple[int, int, int, int]:
    return depth.ready, depth.in_flight, depth.scheduled, depth.dead


async def one_letter(protocol: Protocol, agent: str, *, within_s: float = 15.0) -> DeadLetter:
    """The agent's only dead letter, when it is there."""

    async def dead() -> int:
        return (await protocol.depth(agent)).dead

    await eventually(dead, 1, within_s)
    (letter,) = await protocol.dead_letters(agent)
    return letter


@asynccontextmanager
async def serving(
    protocol: Protocol, agent: str, handle: Callable[[Delivery], Awaitable[None]], **options: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve for as long as the block lasts; an error of `serve` fails the test."""
    job = asyncio.create_task(protocol.serve(agent, handle, **options))
    try:
        yield job
    finally:
        job.cancel()
        with suppress(asyncio.CancelledError):
            await job


async def ask_once(protocol: Protocol) -> None:
    """Its mailbox is open after this: the time-outs of requests are not spent on that."""

    async def answer(delivery: Delivery) -> None:
        await protocol.reply(delivery.message, None)

    async with serving(protocol, "asked-first", answer):
        await protocol.request(task("asked-first"), timeout_s=30)


async def letter_of_the_work(protocol: Protocol, worker: Worker, message: Message) -> DeadLetter:
    """The worker serves until this message, which it gets, is its only dead letter."""
    stop = asyncio.Event()
    serve = asyncio.ensure_future(worker.serve(protocol, stop.wait()))
    await protocol.send(message)
    letter = await one_letter(protocol, worker.name)
    stop.set()
    await serve
    return letter
