"""Bad input: refused at `send`, or kept with its bytes; never a crash, never a good message lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hivewire.codec import decode, encode
from hivewire.delivery import Delivery
from hivewire.errors import HivewireError, MessageError, Undecodable
from hivewire.message import Message
from hivewire.testing.bad_messages import BAD_BYTES, BAD_MESSAGES, ODD_BYTES, ODD_MESSAGES, outcome
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    drained,
    empty,
    nothing_for,
    number,
    one_letter,
    serving,
    take,
    task,
)
from hivewire.testing.conformance.waiting import count
from hivewire.testing.generated import generated_bytes, generated_messages

HOSTILE_NAMES = ["", " ", "a b", "a:b", "a*", "../etc", "a\nb", "a\x00b", "{a}", "a" * 129, "ä", "broadcast-x"]
HOSTILE_NAMES += ["/x", "a/\n", "a/" + "x" * 257, "a;b", "%61", "a\u200b", "a\\b"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=[repr(name)[:20] for name in HOSTILE_NAMES])
async def test_hostile_names_are_refused_everywhere(fabric: Fabric, name: str) -> None:
    with pytest.raises(MessageError):
        await fabric.protocol.send(task(name))
    if "/" not in name:
        with pytest.raises(MessageError):
            await fabric.protocol.receive(name, wait_s=0)
        with pytest.raises(MessageError):
            await fabric.protocol.subscribe(name, ["task"])
        with pytest.raises(MessageError):
            await fabric.protocol.subscribe("good", groups=[name])
        with pytest.raises(MessageError):
            await fabric.protocol.broadcast(task("x"), name)
    assert [spec.name for spec in await fabric.backend.queues() if spec.name == name] == []


async def test_malformed_bytes_are_a_dead_letter_and_the_next_message_flows(fabric: Fabric) -> None:
    raw = b'{"id": "x", "type": \xff\xfe oh'
    (id_,) = await fabric.put_raw("raw", raw)
    await fabric.protocol.send(task("raw", 1, key="raw"))
    assert [number(delivery) for delivery in await take(fabric.protocol, "raw", 1)] == [1]
    letter = await one_letter(fabric.protocol, "raw")
    assert letter.raw == raw
    assert letter.message is None
    assert letter.id == id_
    assert letter.attempts == 0
    assert letter.reason


async def test_a_malformed_dead_letter_can_be_replayed_and_dies_again(fabric: Fabric) -> None:
    raw = b"\x00not json"
    (id_,) = await fabric.put_raw("loop", raw)
    await fabric.protocol.receive("loop", wait_s=0.2)
    await one_letter(fabric.protocol, "loop")
    assert await fabric.protocol.replay([id_]) == 1
    await fabric.protocol.receive("loop", wait_s=0.2)
    assert (await one_letter(fabric.protocol, "loop")).raw == raw


async def test_a_served_queue_survives_malformed_bytes(fabric: Fabric) -> None:
    await fabric.inside("tough", concurrency=2)
    for n in range(20):
        await fabric.put_raw("tough", b"\xff" * (n + 1), key=f"k{n % 3}")
        await fabric.protocol.send(task("tough", n, key=f"k{n % 3}"))
    await empty(fabric.protocol, "tough", dead=20)
    assert sorted(entry.n for entry in fabric.journal.ends("tough")) == list(range(20))


async def test_every_bad_message_is_refused_and_nothing_is_stored(fabric: Fabric) -> None:
    for name, make in BAD_MESSAGES:
        (refused,) = await asyncio.gather(fabric.protocol.send(make()), return_exceptions=True)
        assert isinstance(refused, outcome(name)), f"{name}: {refused!r}"
    assert [spec.name for spec in await fabric.backend.queues() if not spec.name.startswith("~")] in ([], ["good"])
    assert counts(await fabric.protocol.depth("good")) == (0, 0, 0, 0)
    await fabric.protocol.send(task("good", 7))
    assert number((await take(fabric.protocol, "good", 1))[-1]) == 7


async def test_half_a_character_is_refused_before_the_store_wherever_text_goes(fabric: Fabric) -> None:
    protocol, bad = fabric.protocol, "half \ud800"
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "send": lambda: protocol.send(task("good"), idempotency_key=bad),
        "send with an empty key": lambda: protocol.send(task("good"), idempotency_key=""),
        "send with a key that is too long": lambda: protocol.send(task("good"), idempotency_key="k" * 257),
        "broadcast": lambda: protocol.broadcast(task("good").replace(id=bad), "team"),
        "volatile": lambda: protocol.broadcast(task("good").replace(id=bad), "team", durable=False),
        "request": lambda: protocol.request(task("good").replace(id=bad), timeout_s=1),
        "subscribe": lambda: protocol.subscribe("good", [bad]),
        "dead_letters": lambda: protocol.dead_letters(bad),
        "dead_letters after": lambda: protocol.dead_letters(after=bad),
        "replay": lambda: protocol.replay(bad),
        "replay ids": lambda: protocol.replay(["x", bad]),
        "purge": lambda: protocol.purge_dead(bad),
        "purge ids": lambda: protocol.purge_dead(["x", bad]),
        "cancel_delayed": lambda: protocol.cancel_delayed([bad]),
        "cancel_delayed of": lambda: protocol.cancel_delayed(["x"], agent=bad),
        "delayed": lambda: protocol.delayed("good", after=bad),
        "schedule": lambda: protocol.schedule(bad, 60, task("good")),
        "schedule when": lambda: protocol.schedule("s", bad, task("good")),
        "schedule where": lambda: protocol.schedule("s", "0 3 * * *", task("good"), timezone=bad),
        "unschedule": lambda: protocol.unschedule(bad),
        "explain": lambda: protocol.explain(bad),
        "value": lambda: protocol.value(bad),
        "set_value": lambda: protocol.set_value(bad, b"", 0),
        "values": lambda: protocol.values(bad),
    }
    for name, call in calls.items():
        (refused,) = await asyncio.gather(call(), return_exceptions=True)
        assert isinstance(refused, MessageError), f"{name}: {refused!r}"
    assert counts(await protocol.depth("good")) == (0, 0, 0, 0)
    longest = "k" * 256
    first = await protocol.send(task("good", 7), idempotency_key=longest)
    assert number((await take(protocol, "good", 1))[-1]) == 7
    assert first.duplicate in (False, None)


async def test_every_odd_message_arrives_whole(fabric: Fabric) -> None:
    for name, make in ODD_MESSAGES:
        message = make()
        await fabric.protocol.send(message)
        agent = message.to.partition("/")[0]
        if message.ttl_s is not None and message.ttl_s < 0.001:
            await nothing_for(fabric.protocol, agent, 0)
            assert (await one_letter(fabric.protocol, agent)).message == message
            await fabric.protocol.purge_dead(agent)
            continue
        (delivery,) = await take(fabric.protocol, agent, 1)
        assert delivery.message.id == message.id, name
        assert (await fabric.protocol.depth(agent)).dead == 0, name


async def test_all_bad_bytes_in_the_store_are_kept_and_good_ones_flow(fabric: Fabric) -> None:
    bodies = [body for _, body in BAD_BYTES]
    ids = await fabric.put_raw("bad", *bodies)
    await fabric.protocol.send(task("bad", 7, key="raw"))
    assert [number(delivery) for delivery in await take(fabric.protocol, "bad", 1)] == [7]
    await empty(fabric.protocol, "bad", dead=len(bodies))
    letters = await fabric.protocol.dead_letters("bad", limit=len(bodies) + 1)
    assert {letter.id: letter.raw for letter in letters} == dict(zip(ids, bodies, strict=True))
    assert {letter.reason for letter in letters} == {"malformed"}


async def test_all_odd_bytes_in_the_store_are_delivered(fabric: Fabric) -> None:
    await fabric.put_raw("odd", *(body for _, body in ODD_BYTES))
    assert len(await take(fabric.protocol, "odd", len(ODD_BYTES))) == len(ODD_BYTES)
    assert (await fabric.protocol.depth("odd")).dead == 0


async def test_generated_messages_are_refused_or_arrive_whole(fabric: Fabric) -> None:
    """10,000 on a soak. What is refused leaves nothing; what is taken arrives as it was sent, or is expired."""
    sent: dict[str, list[Message]] = {}
    refused = 0
    for message in generated_messages(1, count(1_000, 10_000), "made"):
        try:
            receipt = await fabric.protocol.send(message)
        except MessageError:
            refused += 1
        else:
            again = decode(encode(message, 1 << 20))  # such as a tuple that comes back as a list
            sent.setdefault(receipt.id, []).append(again)  # one of those with the same odd id is handled
    assert refused > 100
    assert len(sent) > 50
    got = await _all(fabric, "made")
    dead = {letter.id: letter for letter in await fabric.protocol.dead_letters("made", limit=10_000)}
    assert {letter.reason for letter in dead.values()} <= {"expired"}
    assert set(got) | set(dead) == set(sent)
    for id_, message in got.items():
        assert decode(encode(message, 1 << 20)) in sent[id_]
    await empty(fabric.protocol, "made", dead=len(dead))


async def test_generated_bytes_in_the_store_are_delivered_or_kept(fabric: Fabric) -> None:
    """10,000 on a soak. Each one is a delivery or a dead letter with its bytes; none stops the others."""
    bodies = list(generated_bytes(2, count(1_000, 10_000)))
    ids: list[str] = []
    for start in range(0, len(bodies), 250):
        ids += await fabric.put_raw("raw", *bodies[start : start + 250], key=f"k{start}")
    got = await _all(fabric, "raw")
    letters = []
    after = None
    while page := await fabric.protocol.dead_letters("raw", limit=500, after=after):
        letters += page
        after = page[-1].cursor
    kept = {letter.id: letter.raw for letter in letters}
    assert len(kept) == len(letters)
    assert all(body == dict(zip(ids, bodies, strict=True))[id_] for id_, body in kept.items())
    assert len(kept) > len(bodies) // 2
    assert len(got) + len(kept) == len(bodies)
    await empty(fabric.protocol, "raw", dead=len(kept))


async def _all(fabric: Fabric, agent: str) -> dict[str, Message]:
    """Everything that is handled, by the id under which it is stored."""
    found: dict[str, Message] = {}

    async def handle(delivery: Delivery) -> None:
        found[getattr(delivery, "fetched").record.id] = delivery.message  # noqa: B009  # the engine's own

    async with serving(fabric.protocol, agent, handle, concurrency=8):
        await drained(fabric.protocol, agent, within_s=120)
    return found


async def test_content_that_is_not_json_is_undecodable(fabric: Fabric) -> None:
    for content in (float("nan"), float("inf"), {1: "int key"}, {"set": {1}}, object(), "\ud800", 2**70, [b"inner"]):
        message = Message(type="task", sender="me", to="strict", content=content)
        try:
            await fabric.protocol.send(message)
        except Undecodable:
            continue
        (delivery,) = await take(fabric.protocol, "strict", 1)
        assert delivery.message.content == content, f"{content!r} arrived changed"
    assert counts(await fabric.protocol.depth("strict")) == (0, 0, 0, 0)


async def test_too_deep_content_is_refused(fabric: Fabric) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MessageError):
        await fabric.protocol.send(Message(type="task", sender="me", to="deep", content=deep))
    assert counts(await fabric.protocol.depth("deep")) == (0, 0, 0, 0)


async def test_strange_ids_and_keys_are_carried_or_refused(fabric: Fabric) -> None:
    ids = ["a", "x" * 256, "ü", "a b", "'; DROP TABLE messages; --", "%s", "\\", "a:b:c", "{x}", "a\nb"]
    for n, id_ in enumerate(ids):
        message = task("strange", n, key=id_, id=id_)
        try:
            await fabric.protocol.send(message)
        except MessageError:
            continue
        (delivery,) = await take(fabric.protocol, "strange", 1)
        assert delivery.message == message
    for id_ in ("", "x" * 257):
        with pytest.raises(MessageError):
            await fabric.protocol.send(task("strange", id=id_))
    await empty(fabric.protocol, "strange")


async def test_the_fields_of_a_bad_type_are_refused(fabric: Fabric) -> None:
    good = task("types")
    changes: list[dict[str, object]] = [
        {"type": ""}, {"type": 5}, {"sender": ""}, {"sender": None}, {"to": None}, {"id": 7}, {"key": 3},
        {"metadata": None}, {"metadata": {1: 2}}, {"ttl_s": -1}, {"ttl_s": float("nan")}, {"ttl_s": "x"},
        {"priority": "high"}, {"created_at": "today"}, {"in_reply_to": 4},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(HivewireError):
            await fabric.protocol.send(good.replace(**change))
    assert counts(await fabric.protocol.depth("types")) == (0, 0, 0, 0)
