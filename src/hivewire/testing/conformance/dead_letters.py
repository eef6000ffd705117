"""Promise 7: what will not be tried again is kept, with its reason and its original bytes."""

from __future__ import annotations

import asyncio

import pytest

from hivewire.delivery import Delivery
from hivewire.errors import MessageError, Reject
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
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
from hivewire.testing.conformance.waiting import until


async def _bury(fabric: Fabric, agent: str, n: int, *, key: str | None = None) -> Message:
    message = task(agent, n, key=key)
    await fabric.protocol.send(message)
    delivery = await take_one(fabric.protocol, agent)
    await delivery.reject(f"reason {n}")
    return message


async def test_after_the_last_attempt_everything_is_kept(fabric: Fabric) -> None:
    member = await fabric.member(max_attempts=3, worker_name="digger")

    async def fail(delivery: Delivery) -> None:
        raise LookupError(f"no such thing, attempt {delivery.attempt}")

    message = task("tired", 1, key="k")
    began = fabric.backend.now()
    await fabric.protocol.send(message)
    async with serving(member, "tired", fail):
        letter = await one_letter(fabric.protocol, "tired")
    assert letter.id == message.id
    assert letter.agent == "tired"
    assert letter.message == message
    assert letter.attempts == 3
    assert letter.reason
    assert "LookupError: no such thing, attempt 3" in letter.error
    assert "test_after_the_last" in letter.error or "in fail" in letter.error, "no traceback"
    assert "digger" in letter.worker
    assert began - 1 <= letter.first_at <= letter.dead_at <= fabric.backend.now() + 1


async def test_of_an_endless_error_both_ends_are_kept(fabric: Fabric) -> None:
    """It takes no more room than a store has for one record."""

    async def fail(delivery: Delivery) -> None:
        raise ValueError("begins " + "x" * 20_000_000 + " ends")

    member = await fabric.member(max_attempts=1)
    message = task("endless", 1)
    await member.send(message)
    async with serving(member, "endless", fail):
        letter = await one_letter(member, "endless")
    assert letter.message == message
    assert "ValueError: begins x" in letter.error
    assert letter.error.rstrip().endswith("x ends")
    assert "characters are left out" in letter.error
    assert len(letter.error) < 70_000


async def test_reject_keeps_its_reason(fabric: Fabric) -> None:
    message = await _bury(fabric, "reject", 4)
    letter = await one_letter(fabric.protocol, "reject")
    assert letter.message == message
    assert "reason 4" in letter.reason + letter.error
    assert letter.attempts == 1


async def test_the_next_message_of_the_key_flows(fabric: Fabric) -> None:
    await send_numbered(fabric.protocol, "flow", 3)
    await (await take_one(fabric.protocol, "flow")).reject("no")
    assert [number(delivery) for delivery in await take(fabric.protocol, "flow", 2)] == [1, 2]


async def test_replay_delivers_again_with_attempts_at_zero(fabric: Fabric) -> None:
    member = await fabric.member(max_attempts=2)
    good = asyncio.Event()
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if not good.is_set():
            raise RuntimeError("not yet")

    message = task("replay", 1)
    await fabric.protocol.send(message)
    async with serving(member, "replay", handle):
        await one_letter(fabric.protocol, "replay")
        good.set()
        assert await fabric.protocol.replay([message.id]) == 1
        await empty(fabric.protocol, "replay")
    assert attempts == [1, 2, 1]
    assert await fabric.protocol.dead_letters("replay") == []


async def test_a_replayed_message_can_die_again(fabric: Fabric) -> None:
    message = await _bury(fabric, "twice", 1)
    for _ in range(2):
        assert await fabric.protocol.replay("twice") == 1
        delivery = await take_one(fabric.protocol, "twice")
        assert delivery.message == message
        await delivery.reject("again")
        letter = await one_letter(fabric.protocol, "twice")
        assert letter.id == message.id


async def test_replay_of_an_agent_keeps_the_order(fabric: Fabric) -> None:
    for n in range(5):
        await _bury(fabric, "all", n, key="k")
    await _bury(fabric, "other", 9)
    assert await fabric.protocol.replay("all") == 5
    assert [number(delivery) for delivery in await take(fabric.protocol, "all", 5)] == list(range(5))
    assert counts(await fabric.protocol.depth("other")) == (0, 0, 0, 1)


async def test_replay_of_nothing_is_zero(fabric: Fabric) -> None:
    assert await fabric.protocol.replay(["no such id"]) == 0
    assert await fabric.protocol.replay([]) == 0
    assert await fabric.protocol.replay("nobody") == 0


async def test_concurrent_replays_give_one_life(fabric: Fabric) -> None:
    message = await _bury(fabric, "one", 1)
    other = await fabric.member()
    replayed = await asyncio.gather(*(member.replay([message.id]) for member in (fabric.protocol, other) * 3))
    assert sum(replayed) == 1
    assert len(await take(fabric.protocol, "one", 1)) == 1
    await nothing_for(fabric.protocol, "one")


async def test_the_listing_is_oldest_first_and_pages(fabric: Fabric) -> None:
    messages = [await _bury(fabric, "pages", n) for n in range(7)]
    await _bury(fabric, "elsewhere", 0)
    listed: list[str] = []
    after: str | None = None
    while page := await fabric.protocol.dead_letters("pages", limit=3, after=after):
        assert len(page) <= 3
        listed += [letter.id for letter in page]
        after = page[-1].cursor
    assert listed == [message.id for message in messages]
    everywhere = await fabric.protocol.dead_letters()
    assert {letter.agent for letter in everywhere} == {"pages", "elsewhere"}
    assert len(everywhere) == 8


async def test_the_listing_goes_on_after_an_id_as_long_as_it_names_one_letter(fabric: Fabric) -> None:
    messages = [await _bury(fabric, "pages", n) for n in range(7)]
    listed: list[str] = []
    while page := await fabric.protocol.dead_letters("pages", limit=3, after=listed[-1] if listed else None):
        listed += [letter.id for letter in page]
    assert listed == [message.id for message in messages]
    await fabric.protocol.send(messages[6].replace(to="elsewhere"))
    await (await take_one(fabric.protocol, "elsewhere")).reject("no")
    with pytest.raises(MessageError, match="the id of several in this listing"):
        await fabric.protocol.dead_letters(after=messages[6].id)
    assert await fabric.protocol.dead_letters("pages", after=messages[6].id) == []
    await fabric.protocol.purge_dead([messages[2].id])
    for gone in (messages[2].id, "of no letter", "7"):
        with pytest.raises(MessageError, match="the id of none in this listing"):
            await fabric.protocol.dead_letters("pages", after=gone)


async def test_purge_removes_what_was_named_and_no_more(fabric: Fabric) -> None:
    messages = [await _bury(fabric, "purge", n) for n in range(4)]
    await _bury(fabric, "keep", 0)
    assert await fabric.protocol.purge_dead([messages[1].id]) == 1
    assert await fabric.protocol.purge_dead("purge", older_than_s=3600) == 0
    assert [letter.id for letter in await fabric.protocol.dead_letters("purge")] == [messages[n].id for n in (0, 2, 3)]
    assert await fabric.protocol.purge_dead("purge") == 3
    assert len(await fabric.protocol.dead_letters()) == 1
    assert await fabric.protocol.purge_dead() == 1


async def test_dead_letters_survive_cleanup_and_restart(fabric: Fabric) -> None:
    message = await _bury(fabric, "stay", 1)
    await fabric.protocol.cleanup(0)
    assert (await one_letter(fabric.protocol, "stay")).id == message.id
    await fabric.restart()
    letters = await fabric.protocol.dead_letters("stay")
    assert [letter.id for letter in letters] == ([message.id] if fabric.durable else [])


async def test_the_move_is_whole_under_kills(fabric: Fabric) -> None:
    """Workers that are killed while they reject: each message is either waiting or dead, never both or gone."""
    total = 60
    keys = [f"k{n}" for n in range(10)]
    await send_numbered(fabric.protocol, "whole", total // 10, keys=keys, steps=[("reject", "all of them")])
    for _ in range(3):
        worker = await fabric.worker("whole", concurrency=3, settings={"max_attempts": 50})
        goal = len(fabric.journal.ends("whole")) + 8
        await until(lambda goal=goal: len(fabric.journal.ends("whole")) >= min(goal, total), "it works")  # type: ignore[misc]
        worker.kill()
        await worker.ended()
        depth = await fabric.protocol.depth("whole")
        assert depth.ready + depth.in_flight + depth.scheduled + depth.dead == total
    await fabric.worker("whole", concurrency=3)
    await empty(fabric.protocol, "whole", dead=total, within_s=30)
    letters = await fabric.protocol.dead_letters("whole", limit=1000)
    assert len({letter.id for letter in letters}) == total


async def test_the_error_of_a_nack_is_kept(fabric: Fabric) -> None:
    member = await fabric.member(max_attempts=1)
    await fabric.protocol.send(task("nack"))
    delivery = await take_one(member, "nack")
    await delivery.nack(error=OSError("disk is sad"))
    letter = await one_letter(fabric.protocol, "nack")
    assert "disk is sad" in letter.error


async def test_bytes_content_is_kept_as_it_was(fabric: Fabric) -> None:
    message = Message(type="task", sender="me", to="bytes", content=bytes(range(256)))

    async def reject(delivery: Delivery) -> None:
        raise Reject("no bytes please")

    await fabric.protocol.send(message)
    async with serving(fabric.protocol, "bytes", reject):
        letter = await one_letter(fabric.protocol, "bytes")
    assert letter.message == message
    assert letter.raw
    assert await fabric.protocol.replay("bytes") == 1
    assert (await take(fabric.protocol, "bytes", 1))[0].message == message
