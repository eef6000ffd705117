"""The life of a message as `explain` tells it: each kind of life is lived, and the story must equal it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import QueueFull, Reject
from hivewire.message import Message
from hivewire.rules.trail import sentence, whereabouts
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    empty,
    nothing_for,
    one_letter,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import eventually

Handle = Callable[[Delivery], Awaitable[None]]


async def narrator(fabric: Fabric, **settings: object) -> Engine:
    return await fabric.member(**{"trail": "all", "worker_name": "ann", "max_attempts": 3, **settings})


async def story(protocol: Engine, id: str) -> list[str]:
    """What `hivewire explain` prints, but for times."""
    found = await protocol.explain(id)
    assert not found.unsearched
    told = [sentence(event) for event in found.events] + [f"now {whereabouts(place)}" for place in found.places]
    return [re.sub(r"in \d+\.\d s", "in T", line) for line in told]


async def fail_until(attempt: int, delivery: Delivery) -> None:
    if delivery.attempt < attempt:
        raise ValueError(f"not\nat attempt {delivery.attempt}")


async def test_the_plain_life(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1)
    await protocol.send(message)
    assert await story(protocol, message.id) == [
        "sent by tester to coder",
        "stored",
        "now waits in the queue of coder",
    ]
    delivery = await take_one(protocol, "coder")
    assert (await story(protocol, message.id))[2:] == [
        "attempt 1 started at ann",
        "now is with a worker of coder, in attempt 1",
    ]
    await delivery.ack()
    assert (await story(protocol, message.id))[2:] == ["attempt 1 started at ann", "acknowledged by ann"]


async def test_a_life_that_is_served(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    messages = [task("coder", n) for n in range(3)]
    await protocol.send_many(messages)
    async with serving(protocol, "coder", lambda delivery: fail_until(0, delivery)):
        await empty(protocol, "coder")
    for message in messages:
        assert await story(protocol, message.id) == [
            "sent by tester to coder",
            "stored",
            "attempt 1 started at ann",
            "acknowledged by ann",
        ]


async def test_a_delayed_life(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("later", 1)
    await protocol.send(message, delay_s=1.5)
    assert await story(protocol, message.id) == [
        "sent by tester to later",
        "stored: due in T",
        "now waits in the queue of later for its time",
    ]
    await take(protocol, "later", 1)
    assert (await story(protocol, message.id))[2:] == ["attempt 1 started at ann", "acknowledged by ann"]


async def test_a_life_with_a_failure(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1)
    await protocol.send(message)
    async with serving(protocol, "coder", lambda delivery: fail_until(2, delivery)):
        await empty(protocol, "coder")
    assert (await story(protocol, message.id))[2:] == [
        "attempt 1 started at ann",
        "attempt 1 failed: ValueError: not at attempt 1; again in T",
        "attempt 2 started at ann",
        "acknowledged by ann",
    ]


async def test_a_life_that_waits_for_its_next_attempt(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1)
    await protocol.send(message)
    await (await take_one(protocol, "coder")).nack(30.0)
    assert (await story(protocol, message.id))[3:] == [
        "attempt 1 failed: given back by its handler (nack); again in T",
        "now waits in the queue of coder for its time, after 1 attempt",
    ]


async def test_a_life_that_ends_after_its_attempts(fabric: Fabric) -> None:
    protocol = await narrator(fabric, max_attempts=2)
    message = task("coder", 1)
    await protocol.send(message)
    async with serving(protocol, "coder", lambda delivery: fail_until(9, delivery)):
        await one_letter(protocol, "coder")
    assert (await story(protocol, message.id))[2:] == [
        "attempt 1 started at ann",
        "attempt 1 failed: ValueError: not at attempt 1; again in T",
        "attempt 2 started at ann",
        "attempt 2 failed: ValueError: not at attempt 2",
        "dead letter of coder: max_attempts: ValueError: not at attempt 2",
        "now is a dead letter of coder, after 2 attempts: max_attempts: ValueError: not at attempt 2",
    ]


async def test_a_rejected_life(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1)
    await protocol.send(message)

    async def refuse(delivery: Delivery) -> None:
        raise Reject("not my job")

    async with serving(protocol, "coder", refuse):
        await one_letter(protocol, "coder")
    assert (await story(protocol, message.id))[2:] == [
        "attempt 1 started at ann",
        "dead letter of coder: rejected: not my job",
        "now is a dead letter of coder, after 1 attempt: rejected: not my job",
    ]


async def test_a_life_that_runs_out_unread(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1, ttl_s=0.3)
    await protocol.send(message)
    if not fabric.features.finds_expired:  # the lesser promise: found when somebody reads
        await asyncio.sleep(0.5)
        await nothing_for(protocol, "coder")
    await one_letter(protocol, "coder")
    *told, now = await story(protocol, message.id)
    assert told[:2] == ["sent by tester to coder", "stored"]
    found = (
        [] if fabric.features.finds_expired else ["dead letter of coder: expired: its time to live of 0.3 s ran out"]
    )
    assert told[2:] == found
    assert now.startswith("now is a dead letter of coder: expired: its time to live of 0.3 s ran out")


async def test_a_malformed_life(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    (id_,) = await fabric.put_raw("coder", b"{not json")
    async with serving(protocol, "coder", lambda delivery: fail_until(0, delivery)):
        await one_letter(protocol, "coder")
    told, now = await story(protocol, id_)
    assert told.startswith("dead letter of coder: malformed: ")
    assert now == f"now is a {told}"


async def test_a_life_that_nobody_subscribed(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    await protocol.subscribe("coder", ["query"])
    message = task("coder", 1)
    await protocol.send(message)
    async with serving(protocol, "coder", lambda delivery: fail_until(0, delivery)):
        await one_letter(protocol, "coder")
    why = "dead letter of coder: unsubscribed: coder does not take messages of type 'task'"
    assert (await story(protocol, message.id))[2:] == [why, f"now is a {why}"]


async def test_a_life_that_was_sent_twice(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("coder", 1)
    await protocol.send(message)
    await take(protocol, "coder", 1)
    await protocol.send(message)
    async with serving(protocol, "coder", lambda delivery: fail_until(0, delivery)):
        await empty(protocol, "coder")
    plain = ["attempt 1 started at ann", "acknowledged by ann"]
    told = await story(protocol, message.id)
    assert told.pop() == "duplicate: stored twice and handled before: dropped"
    assert sorted(told) == sorted(2 * ["sent by tester to coder", "stored"] + plain)


async def test_a_life_with_an_idempotency_key(fabric: Fabric) -> None:
    if not fabric.features.store_dedup:
        return  # stored twice and handled once: the case before
    protocol = await narrator(fabric)
    first, second = task("coder", 1), task("coder", 2)
    await protocol.send(first, idempotency_key="one")
    await protocol.send(second, idempotency_key="one")
    assert await story(protocol, second.id) == [
        f"duplicate: not stored: the idempotency key 'one' belongs to {first.id}"
    ]
    assert (await story(protocol, first.id))[2] == (
        f"duplicate: sent again as {second.id} with the idempotency key 'one'; that one was not stored"
    )


@pytest.mark.parametrize("trail", ["all", "trouble"])
async def test_a_refused_life(fabric: Fabric, trail: str) -> None:
    protocol = await narrator(fabric, queue_cap=1, trail=trail)
    await protocol.send(task("small", 1))
    refused = task("small", 2)
    with pytest.raises(QueueFull):
        await protocol.send(refused, timeout_s=0.1)
    (told,) = await story(protocol, refused.id)
    assert told.startswith("refused by the queue of small: QueueFull: ")


@pytest.mark.slow
async def test_a_life_that_is_taken_over(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    await fabric.worker("coder", settings={"trail": "all", "worker_name": "first"})
    message = task("coder", 1, ["sleep", 1.6], ["die", 1])
    await protocol.send(message)

    async def told() -> list[str]:
        return await story(protocol, message.id)

    await eventually(lambda: _is_told(told, "attempt 1 started at first"), True, 15.0)
    await fabric.worker("coder", settings={"trail": "all", "worker_name": "second"})
    await empty(protocol, "coder", within_s=30)
    await eventually(lambda: _is_told(told, "acknowledged by second"), True, 15.0)
    assert await told() == [
        "sent by tester to coder",
        "stored",
        "attempt 1 started at first",
        "taken over by second: whoever had it before died or lost its lease",
        "attempt 2 started at second",
        "acknowledged by second",
    ]


async def _is_told(told: Callable[[], Awaitable[list[str]]], line: str) -> bool:
    return line in await told()


async def test_a_life_that_is_replayed_and_one_that_is_purged(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    again, gone = task("coder", 1), task("coder", 2)
    for message in (again, gone):
        await protocol.send(message)
        await (await take_one(protocol, "coder")).reject("no")
    await protocol.replay([again.id])
    await take(protocol, "coder", 1)
    await protocol.purge_dead([gone.id])
    died = ["attempt 1 started at ann", "dead letter of coder: rejected: no"]
    assert (await story(protocol, again.id))[2:] == [
        *died,
        "replayed to coder: it was dead (rejected: no)",
        "attempt 1 started at ann",
        "acknowledged by ann",
    ]
    assert (await story(protocol, gone.id))[2:] == [
        *died,
        "purged from the dead letters of coder: it was dead (rejected: no)",
    ]


async def test_a_life_whose_handler_takes_too_long(fabric: Fabric) -> None:
    protocol = await narrator(fabric, max_attempts=1)
    message = task("slow", 1)
    await protocol.send(message)

    async def sleep(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    async with serving(protocol, "slow", sleep, timeout_s=0.2):
        await one_letter(protocol, "slow")
    why = "TimeoutError: its handler ran longer than 0.2 s"
    assert (await story(protocol, message.id))[2:5] == [
        "attempt 1 started at ann",
        f"attempt 1 failed: {why}",
        f"dead letter of slow: max_attempts: {why}",
    ]


async def test_a_life_that_is_handed_back(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    message = task("calm", 1)
    await protocol.send(message)
    running = asyncio.Event()

    async def sleep(delivery: Delivery) -> None:
        running.set()
        await asyncio.Event().wait()

    async with serving(protocol, "calm", sleep):
        await running.wait()
    await take(protocol, "calm", 1)
    told = await story(protocol, message.id)
    assert told[2:4] == [
        "attempt 1 started at ann",
        "attempt 1 given back: its attempt did not come to its end and does not count",
    ]
    assert told[-2:] == ["attempt 2 started at ann", "acknowledged by ann"]


async def test_a_broadcast_is_told_with_its_copies(fabric: Fabric) -> None:
    protocol = await narrator(fabric)
    for agent in ("bo", "cy"):
        await protocol.subscribe(agent, groups=["all"])
    message = Message(type="news", sender="ann", content=1)
    await protocol.broadcast(message, "all")
    await take(protocol, "bo", 1)
    await take_one(protocol, "cy")
    told = await story(protocol, message.id)
    assert told[:2] == ["sent by ann to ~group/all", "stored"]
    assert "copied to bo, cy" in told
    assert told.count("stored: as a member of group all") == 2
    assert told.count("acknowledged by ann") == 1
    assert told[-1] == "now is with a worker of cy, in attempt 1"
