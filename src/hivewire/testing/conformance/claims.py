"""Claim check: a large content lies in a blob store, is found whole, and goes after the last acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from hivewire.backend import Append, Duplicate
from hivewire.blobs import BlobStore
from hivewire.delivery import Delivery
from hivewire.engine import claims
from hivewire.engine.claims import MARK
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, ConnectionLost, SettingsError, TooLarge, Unsupported
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import empty, forgotten, one_letter, serving, take, take_one, task
from hivewire.testing.conformance.waiting import eventually

LIMIT = 1_000


@pytest.fixture(params=["auto", "folder", "sqlite"])
async def member(fabric: Fabric, request: pytest.FixtureRequest) -> Engine:
    """A member that puts away what has more than 1,000 bytes: beside the queues, in a folder, in a file."""
    blobs = {
        # A store that has no place of its own for them gets a folder.
        "auto": "auto" if fabric.backend.blobs() is not None else f"folder:///{fabric.folder}/auto",
        "folder": f"folder:///{fabric.folder}/blobs",
        "sqlite": f"sqlite:///{fabric.folder}/blobs.db",
    }[request.param]
    fabric.settings.update(blobs=blobs, claim_check_bytes=LIMIT)
    return await fabric.member()


def _store(member: Engine) -> BlobStore:
    assert member._blobs is not None
    return member._blobs


def _large(to: str, n: int = 0, **fields: Any) -> Message:
    return task(to, n, **fields).replace(content={"n": n, "text": f"{n:05d}" * 1_000})


async def _bodies(member: Engine, agent: str) -> list[bytes]:
    return [each.record.body for each in await member.backend.peek(agent, 100, None)]


async def _held(member: Engine) -> int:
    return len(await _store(member).names())


async def _all_gone(member: Engine) -> None:
    await eventually(lambda: _held(member), 0, 15.0)


async def test_a_large_content_goes_by_reference_and_arrives_whole(fabric: Fabric, member: Engine) -> None:
    large, small = _large("big", 1), task("big", 2)
    raw = Message(type="task", sender="tester", to="big", content=bytes(range(256)) * 20)
    await member.send_many([large, small, raw])
    if fabric.can_look:
        bodies = await _bodies(member, "big")
        assert sorted(body.startswith(MARK) for body in bodies) == [False, True, True]
        assert all(len(body) < LIMIT for body in bodies)
    assert await _held(member) == 2
    taken = await take(member, "big", 3)
    assert [delivery.message for delivery in taken] == [large, small, raw]
    await _all_gone(member)


async def test_it_is_kept_until_the_last_acknowledgement_is_stored(fabric: Fabric, member: Engine) -> None:
    message = _large("big", 1)
    await member.send(message, delay_s=0.3)
    for _ in range(2):  # a failed attempt, a given-back one
        delivery = await take_one(member, "big")
        assert delivery.message == message
        assert await _held(member) == 1
        await delivery.nack(0.0)
    delivery = await take_one(member, "big")
    await delivery.reject("not now")
    letter = await one_letter(member, "big")
    assert letter.message == message
    assert letter.raw.startswith(b"{")
    assert await _held(member) == 1
    await member.replay("big")
    (delivery,) = await take(member, "big", 1)
    assert delivery.message == message
    await _all_gone(member)


async def test_served_messages_leave_nothing_behind(fabric: Fabric, member: Engine) -> None:
    seen: list[Message] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.attempt == 1 and delivery.message.content["n"] % 5 == 0:
            raise ValueError("once more")
        seen.append(delivery.message)

    batch = [_large("big", n, key=f"k{n % 4}") for n in range(40)]
    await member.send_many(batch)
    other = await fabric.member()
    async with serving(member, "big", handle, concurrency=4), serving(other, "big", handle, concurrency=4):
        await empty(member, "big")
    assert sorted(message.content["n"] for message in seen) == list(range(40))
    assert {message.id: message for message in seen} == {message.id: message for message in batch}
    await _all_gone(member)


async def test_a_worker_that_dies_takes_no_content_with_it(fabric: Fabric, member: Engine) -> None:
    worker = await fabric.worker("big")
    message = task("big", 1, ["sleep", 0.3], ["die", 1])  # marked as running before
    message = message.replace(content={**message.content, "more": "x" * 5_000})
    await member.send(message)
    await worker.ended()
    second = await fabric.worker("big")
    await empty(member, "big", within_s=30)
    assert [entry.worker for entry in fabric.journal.ends("big") if entry.note == "done"] == [second.name]
    await _all_gone(member)


async def test_a_resend_s_copy_goes_too(fabric: Fabric, member: Engine) -> None:
    message = _large("big", 1)
    await member.send(message)
    await member.send(message)
    assert await _held(member) == 2
    await take(member, "big", 1)
    async with serving(member, "big", _refuse):
        await empty(member, "big")
    await _all_gone(member)


async def _refuse(delivery: Delivery) -> None:
    raise AssertionError("it was handled twice")


async def test_an_append_that_was_repeated_leaves_the_dead_letter_its_content(fabric: Fabric, member: Engine) -> None:
    """The answer was lost, and the sender asked again: two records with one content."""
    message = _large("big", 1)
    append, calls = member.backend.append, 0

    async def twice(batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        nonlocal calls
        calls += 1
        await append(batch)
        return await append(batch)

    with patch.object(member.backend, "append", twice):
        await member.send(message)
    assert calls == 1
    await (await take_one(member, "big")).reject("no")
    async with serving(member, "big", _refuse):
        await empty(member, "big", dead=1)
    assert await member.replay("big") == 1
    (again,) = await take(member, "big", 1)
    assert again.message == message


async def test_what_an_idempotency_key_refuses_leaves_no_content(fabric: Fabric, member: Engine) -> None:
    await member.send(_large("big", 1), idempotency_key="k")
    await member.send(_large("big", 2), idempotency_key="k")
    (delivery,) = await take(member, "big", 1)
    assert delivery.message.content["n"] == 1
    if fabric.features.store_dedup:
        await _all_gone(member)


async def test_each_member_of_a_group_has_a_copy(fabric: Fabric, member: Engine) -> None:
    for agent in ("bo", "cy"):
        await member.subscribe(agent, groups=["all"])
    message = Message(type="news", sender="tester", content="x" * 5_000)
    await member.broadcast(message, "all")
    (first,) = await take(member, "bo", 1)
    assert first.message.content == message.content
    (second,) = await take(member, "cy", 1)
    assert second.message.content == message.content
    await _all_gone(member)


@pytest.mark.slow
async def test_a_content_that_was_changed_or_lost_is_a_dead_letter(fabric: Fabric, member: Engine) -> None:
    await member.send(_large("changed", 1))
    (name,) = await _store(member).names()
    whole = await _store(member).get(name)
    await _store(member).put(name, b"{}")
    await member.receive("changed", wait_s=1.0)
    letter = await one_letter(member, "changed")
    assert letter.reason == "content_lost"
    assert "hash differs" in letter.error
    assert letter.message is None
    assert whole is not None
    await _store(member).put(name, whole)  # put right: a replay handles it
    await member.replay("changed")
    (delivery,) = await take(member, "changed", 1)
    assert delivery.message.content["n"] == 1
    await member.send(_large("lost", 1))
    await _all_gone_but(member, 1)
    await _store(member).delete(await _store(member).names())
    await member.receive("lost", wait_s=1.0)
    assert "is not there" in (await one_letter(member, "lost")).error


async def _all_gone_but(member: Engine, left: int) -> None:
    await eventually(lambda: _held(member), left, 15.0)


async def test_the_sweep_takes_what_nothing_refers_to_and_nothing_else(fabric: Fabric, member: Engine) -> None:
    await _store(member).put("00000000001-left", b"of a process that died")
    waiting, delayed, dead = (_large(f"keep{n}", n) for n in range(3))
    await member.send(waiting)
    await member.send(delayed, delay_s=3_600)
    await member.send(dead)
    await (await take_one(member, "keep2")).reject("no")
    held = await take_one(member, "keep0")
    assert await _held(member) == 4
    await member.cleanup(older_than_s=0)
    assert await _held(member) == (3 if fabric.can_look else 4)
    await held.ack()
    await member.replay("keep2")
    (again,) = await take(member, "keep2", 1)
    assert again.message == dead
    if fabric.can_look:
        (listed,) = await member.delayed("keep1")
        assert listed.message == delayed


async def test_the_sweep_leaves_a_content_whose_message_is_on_its_way(fabric: Fabric) -> None:
    """It was put away, and there is no room for the message yet."""
    blobs = f"folder:///{fabric.folder}/blobs"
    member = await fabric.member(blobs=blobs, claim_check_bytes=LIMIT, queue_cap=1)
    await member.send(task("full", 1))
    message = _large("full", 2)
    sending = asyncio.create_task(member.send(message))
    await eventually(lambda: _held(member), 1, 15.0)
    await member.cleanup(older_than_s=0)
    await take(member, "full", 1)
    await sending
    (delivery,) = await take(member, "full", 1)
    assert delivery.message == message
    await _all_gone(member)


async def test_the_sweep_leaves_a_content_as_long_as_its_message_may_wait(fabric: Fabric) -> None:
    """Its sender has two hours, and one has passed."""
    blobs = f"folder:///{fabric.folder}/blobs"
    member = await fabric.member(blobs=blobs, claim_check_bytes=LIMIT, queue_cap=1)
    await member.send(task("full", 1))
    sendings = [asyncio.create_task(member.send(_large("full", n), timeout_s=s)) for n, s in ((2, 7_200), (3, 30))]
    try:
        await eventually(lambda: _held(member), 2, 15.0)
        later = SimpleNamespace(time=lambda: time.time() + 3_700)
        with patch.object(claims, "time", later):
            await member.cleanup(older_than_s=0)
        assert await _held(member) == (1 if fabric.can_look else 2)
    finally:
        for sending in sendings:
            sending.cancel()
        await asyncio.wait(sendings)


async def test_what_is_cancelled_leaves_no_content(fabric: Fabric, member: Engine) -> None:
    message = _large("later", 1)
    await member.send(message, delay_s=3_600)
    if not fabric.can_look:
        with pytest.raises(Unsupported):
            await member.cancel_delayed([message.id])
        assert await _held(member) == 1
        return
    assert await member.cancel_delayed([message.id]) == 1
    await _all_gone(member)


async def test_a_cancel_leaves_the_content_that_another_record_may_refer_to(fabric: Fabric, member: Engine) -> None:
    """The answer to an append was lost and it was repeated: of its two records one has fallen due."""
    if not fabric.can_look:
        return  # nothing can be cancelled there, as above
    message = _large("later", 1)
    append, calls = member.backend.append, 0

    async def twice(batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            await append([msgspec.structs.replace(entry, delay_s=0.0) for entry in batch])
            raise ConnectionLost("the answer is lost")
        return await append(batch)

    with patch.object(member.backend, "append", twice):
        await member.send(message, delay_s=3_600)
    assert calls == 2
    assert await member.cancel_delayed([message.id]) == 1
    await asyncio.sleep(0.1)  # what is deleted is gone by then
    (delivery,) = await take(member, "later", 1)
    assert delivery.message == message
    await _all_gone(member)


async def test_an_agent_that_is_forgotten_leaves_no_content(fabric: Fabric, member: Engine) -> None:
    await member.send(_large("gone", 1))
    await (await take_one(member, "gone")).reject("no")
    await member.send(_large("gone", 2))
    await member.send(_large("gone", 3), delay_s=3_600)
    kept = _large("stays", 4)
    await member.send(kept)
    await eventually(lambda: forgotten(member, "gone"), True, 20.0)
    await _all_gone_but(member, 1 if fabric.can_look else 4)
    (delivery,) = await take(member, "stays", 1)
    assert delivery.message == kept


async def test_the_size_limit_counts_what_is_referred_to(fabric: Fabric, member: Engine) -> None:
    small = await fabric.member(max_message_size_bytes=10_000)
    with pytest.raises(TooLarge):
        await small.send(Message(type="task", sender="tester", to="big", content="x" * 10_001))
    await small.send(Message(type="task", sender="tester", to="big", content="x" * 9_900))
    assert await _held(member) == 1
    await take(small, "big", 1)


async def test_who_has_no_blob_store_loses_nothing(fabric: Fabric, member: Engine) -> None:
    """A member that was set up in another way can neither read the content, nor does it bury the message."""
    message = _large("big", 1)
    await member.send(message)
    other = await fabric.member(blobs="none")
    with pytest.raises(BackendError, match="blobs"):
        await other.receive("big", wait_s=2.0)
    await other.close()
    (delivery,) = await take(member, "big", 1)
    assert delivery.message == message
    assert (await member.depth("big")).dead == 0


async def test_many_at_once_are_each_whole(fabric: Fabric, member: Engine) -> None:
    batch = [_large("big", n, key=str(n)) for n in range(60)]
    await asyncio.gather(*(member.send(message) for message in batch))
    taken = await take(member, "big", 60)
    assert {delivery.message.id: delivery.message for delivery in taken} == {message.id: message for message in batch}
    await _all_gone(member)


@pytest.mark.parametrize("blobs", ["", "folder", "folder:///", "s3://", "folder:/x", "redis://localhost"])
async def test_what_is_no_blob_store_is_refused(fabric: Fabric, blobs: str) -> None:
    with pytest.raises(SettingsError, match="blobs"):
        fabric.connect(blobs=blobs)
