"""Promise 9: what is sent twice is handled once, as far as the windows reach."""

from __future__ import annotations

import asyncio

from hivewire.delivery import Delivery
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    empty,
    nothing_for,
    number,
    one_letter,
    serving,
    take,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until


async def test_the_same_idempotency_key_is_stored_and_handled_once(fabric: Fabric) -> None:
    first = await fabric.protocol.send(task("pay", 1), idempotency_key="order 7")
    second = await fabric.protocol.send(task("pay", 2), idempotency_key="order 7")
    if fabric.features.store_dedup:
        assert (first.duplicate, second.duplicate) == (False, True)
        assert second.id == first.id
        assert counts(await fabric.protocol.depth("pay"))[0] == 1
    else:  # the lesser promise: stored twice, handled once
        assert (first.duplicate, second.duplicate) == (None, None)
    assert [number(delivery) for delivery in await take(fabric.protocol, "pay", 1)] == [1]
    await nothing_for(fabric.protocol, "pay")


async def test_another_key_or_another_agent_is_not_a_duplicate(fabric: Fabric) -> None:
    receipts = [
        await fabric.protocol.send(task(agent, n), idempotency_key=key)
        for n, (agent, key) in enumerate([("a", "k"), ("b", "k"), ("a", "K"), ("a", "k ")])
    ]
    assert len({receipt.id for receipt in receipts}) == 4
    assert not any(receipt.duplicate for receipt in receipts)
    await take(fabric.protocol, "a", 3)
    await take(fabric.protocol, "b", 1)


async def test_the_key_is_known_after_handling_by_others_and_after_a_restart(fabric: Fabric) -> None:
    other = await fabric.member()
    first = await fabric.protocol.send(task("known", 1), idempotency_key="k")
    await take(other, "known", 1)
    second = await other.send(task("known", 2), idempotency_key="k")
    if fabric.features.store_dedup:
        assert (second.id, second.duplicate) == (first.id, True)
    await nothing_for(fabric.protocol, "known")
    await fabric.restart()
    third = await fabric.protocol.send(task("known", 3), idempotency_key="k")
    if not fabric.durable:
        assert third.duplicate is False
        await take(fabric.protocol, "known", 1)
    elif fabric.features.store_dedup:
        assert (third.id, third.duplicate) == (first.id, True)
    await nothing_for(fabric.protocol, "known")


async def test_the_key_is_known_in_another_process(fabric: Fabric) -> None:
    senders = [
        await fabric.worker("race", program="send", count=1, idempotency_key="one", name=f"s{n}") for n in range(3)
    ]
    for sender in senders:
        assert await sender.ended() == 0
    sent = fabric.journal.entries("sent")
    assert len(sent) == 3
    if fabric.features.store_dedup:
        assert len({entry.id for entry in sent}) == 1
        assert sorted(entry.note for entry in sent) == ["False", "True", "True"]
    assert len(await take(fabric.protocol, "race", 1)) == 1
    await nothing_for(fabric.protocol, "race")


async def test_concurrent_sends_of_one_key_store_one(fabric: Fabric) -> None:
    members = [await fabric.member() for _ in range(3)]
    sends = [members[n % 3].send(task("same", n), idempotency_key="k") for n in range(30)]
    receipts = await asyncio.gather(*sends)
    (taken,) = await take(fabric.protocol, "same", 1)
    if fabric.features.store_dedup:
        assert {receipt.id for receipt in receipts} == {taken.message.id}
        assert sum(receipt.duplicate is False for receipt in receipts) == 1
    await nothing_for(fabric.protocol, "same")


async def test_the_key_s_window_ends(fabric: Fabric) -> None:
    member = await fabric.member(idempotency_window_s=0.3)
    await member.send(task("window", 1), idempotency_key="k")
    await asyncio.sleep(0.6)
    receipt = await member.send(task("window", 2), idempotency_key="k")
    assert not receipt.duplicate
    assert [number(delivery) for delivery in await take(member, "window", 2)] == [1, 2]


async def test_maintenance_keeps_the_keys_whose_window_is_open(fabric: Fabric) -> None:
    """Settled ids are forgotten long before idempotency keys are."""
    member = await fabric.member(dedup_window_s=0.05)
    first = await member.send(task("kept", 1), idempotency_key="k")
    await take(member, "kept", 1)
    handled_at = fabric.backend.now()
    await until(lambda: fabric.backend.now() > handled_at + 0.1, "settled ids are forgotten")
    await (await member._ready()).tidy()
    second = await member.send(task("kept", 2), idempotency_key="k")
    if fabric.features.store_dedup:
        assert (second.id, second.duplicate) == (first.id, True)
    await nothing_for(member, "kept")


async def test_a_refused_send_does_not_use_up_its_key(fabric: Fabric) -> None:
    """A key whose message was not stored must not answer for a message that does not exist."""
    from hivewire.errors import QueueFull

    member = await fabric.member(queue_cap=5)
    stored = 0
    while True:
        try:
            await member.send(task("burnt", stored), timeout_s=0.1, idempotency_key=f"k{stored}")
        except QueueFull:
            break
        stored += 1
        assert stored <= 10
    await take(member, "burnt", stored)
    receipt = await member.send(task("burnt", 77), idempotency_key=f"k{stored}")
    assert not receipt.duplicate
    assert [number(delivery) for delivery in await take(member, "burnt", 1)] == [77]


async def test_a_resend_of_the_same_id_is_handled_once(fabric: Fabric) -> None:
    message = task("resend", 1)
    await fabric.protocol.send(message)
    await fabric.protocol.send(message)
    await fabric.protocol.send(task("resend", 2))
    assert [number(delivery) for delivery in await take(fabric.protocol, "resend", 2)] == [1, 2]
    await fabric.protocol.send(message)
    await nothing_for(fabric.protocol, "resend")
    await empty(fabric.protocol, "resend")


async def test_a_resend_after_another_member_handled_it(fabric: Fabric) -> None:
    message = task("moved", 1)
    await fabric.protocol.send(message)
    first = await fabric.worker("moved")
    await until(lambda: fabric.journal.ends("moved"), "it is handled")
    await empty(fabric.protocol, "moved")
    first.kill()
    await first.ended()
    await fabric.protocol.send(message)
    await fabric.protocol.send(task("moved", 2))
    await fabric.worker("moved")
    await empty(fabric.protocol, "moved")
    assert [entry.n for entry in fabric.journal.starts("moved")] == [1, 2]


async def test_the_window_of_ids_survives_a_restart(fabric: Fabric) -> None:
    message = task("window", 1)
    await fabric.protocol.send(message)
    await take(fabric.protocol, "window", 1)
    await fabric.restart()
    await fabric.protocol.send(message)
    if fabric.durable:
        await nothing_for(fabric.protocol, "window")
        assert fabric.protocol.metrics().duplicates == 1
    else:
        await take(fabric.protocol, "window", 1)


async def test_a_resend_while_the_first_one_runs(fabric: Fabric) -> None:
    message = task("busy", 1, key="a")
    await fabric.protocol.send(message)
    held = await take_one(fabric.protocol, "busy")
    await fabric.protocol.send(message)
    await held.ack()
    await nothing_for(fabric.protocol, "busy")
    await empty(fabric.protocol, "busy")


async def test_a_resend_of_a_dead_letter_is_not_a_second_life(fabric: Fabric) -> None:
    """Only a replay is a new life; the resend of an id that was settled by rejection is a duplicate."""
    message = task("dead", 1)
    await fabric.protocol.send(message)
    await (await take_one(fabric.protocol, "dead")).reject("no")
    await fabric.protocol.send(message)
    await nothing_for(fabric.protocol, "dead")
    assert (await one_letter(fabric.protocol, "dead")).id == message.id


async def test_a_replay_is_a_new_life_and_its_resend_is_a_duplicate(fabric: Fabric) -> None:
    message = task("life", 1)
    await fabric.protocol.send(message)
    await (await take_one(fabric.protocol, "life")).reject("no")
    assert await fabric.protocol.replay([message.id]) == 1
    await take(fabric.protocol, "life", 1)
    await fabric.protocol.send(message)
    await nothing_for(fabric.protocol, "life")
    await empty(fabric.protocol, "life")


async def test_two_agents_may_get_the_same_id(fabric: Fabric) -> None:
    message = task("one", 1)
    await fabric.protocol.send(message)
    await fabric.protocol.send(message.replace(to="two"))
    await take(fabric.protocol, "one", 1)
    await take(fabric.protocol, "two", 1)


async def test_what_a_redelivered_handler_sends_is_recognised_downstream(fabric: Fabric) -> None:
    """The worker sends, dies before its acknowledgement, and its successor sends the same again."""
    first = await fabric.worker("middle", program="worker")
    steps = (("send", "down", {"n": 1}), ("send", "down", {"n": 2}), ("sleep", 0.3), ("die", 1))
    await fabric.protocol.send(task("middle", 0, *steps))
    assert await first.ended() != 0
    await fabric.worker("middle", program="worker")
    await empty(fabric.protocol, "middle")
    assert [entry.attempt for entry in fabric.journal.starts("middle")] == [1, 2]
    taken = await take(fabric.protocol, "down", 2)
    assert [number(delivery) for delivery in taken] == [1, 2]
    await nothing_for(fabric.protocol, "down")
    assert fabric.protocol.metrics().duplicates == 2


async def test_outputs_of_a_replay_are_new(fabric: Fabric) -> None:
    await fabric.inside("maker", program="worker")
    await fabric.protocol.send(task("maker", 0, ("send", "made", {"n": 1}), ("reject", "after sending")))
    await one_letter(fabric.protocol, "maker")
    await take(fabric.protocol, "made", 1)
    assert await fabric.protocol.replay("maker") == 1
    await one_letter(fabric.protocol, "maker")
    await take(fabric.protocol, "made", 1)


async def test_many_resends_under_load_are_handled_once(fabric: Fabric) -> None:
    total = count(200, 5000)
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        seen.append(number(delivery))

    batch: list[Message] = [task("load", n, key=f"k{n % 10}") for n in range(total)]
    async with serving(fabric.protocol, "load", handle, concurrency=4):
        for start in range(0, total, 50):
            await fabric.protocol.send_many(batch[start : start + 50])
            await fabric.protocol.send_many(batch[max(0, start - 25) : start + 25])
        await empty(fabric.protocol, "load", within_s=30)
    assert sorted(seen) == list(range(total))


async def test_once_is_computed_once(fabric: Fabric) -> None:
    calls: list[int] = []

    async def compute() -> dict[str, int]:
        calls.append(1)
        return {"answer": 42}

    other = await fabric.member()
    assert await fabric.protocol.once("scope", "name", compute) == {"answer": 42}
    assert await other.once("scope", "name", compute) == {"answer": 42}
    assert len(calls) == 1
    await other.once("scope", "other", compute)
    await other.once("scope2", "name", compute)
    assert len(calls) == 3
