"""What is kept, for how long, and what `cleanup` gives back."""

from __future__ import annotations

import logging

import pytest

from hivewire.backend import Mode
from hivewire.engine import looking
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import counts, empty, forgotten, take, take_one, task
from hivewire.testing.conformance.waiting import eventually


async def test_the_trail_is_forgotten_by_cleanup_and_messages_are_not(fabric: Fabric) -> None:
    member = await fabric.member(trail="all")
    message = task("keep", 1)
    await member.send(message)
    assert (await member.explain(message.id)).events
    await member.cleanup(older_than_s=3_600)
    assert (await member.explain(message.id)).events
    assert await member.cleanup(older_than_s=0) >= 1

    async def told() -> int:
        return len((await member.explain(message.id)).events)

    await eventually(told, 0, 5.0)
    assert [delivery.message for delivery in await take(member, "keep", 1)] == [message]


async def test_the_trail_ends_by_its_time(fabric: Fabric) -> None:
    member = await fabric.member(trail="all", trail_keep_s=1.0)
    message = task("keep", 1)
    await member.send(message)
    assert (await member.explain(message.id)).events

    async def told() -> int:
        return len((await member.explain(message.id)).events)

    await eventually(told, 0, 10.0)


async def test_dead_letters_stay_unless_a_time_is_set(fabric: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    member = await fabric.member()
    for n in range(3):
        await member.send(task("dead", n))
        await (await take_one(member, "dead")).reject("no")
    await member.cleanup(older_than_s=0)
    await looking.purge_old((await member._ready()).core)
    assert counts(await member.depth("dead")) == (0, 0, 0, 3)
    strict = await fabric.member(dead_letter_keep_s=3_600)
    await looking.purge_old((await strict._ready()).core)
    assert counts(await member.depth("dead")) == (0, 0, 0, 3)
    (letter, *_) = await member.dead_letters("dead")
    stricter = await fabric.member(dead_letter_keep_s=1)
    await eventually(lambda: _age(fabric, letter.dead_at), True, 5.0)
    with caplog.at_level(logging.WARNING):
        await looking.purge_old((await stricter._ready()).core)

    async def left() -> int:
        await looking.purge_old((await stricter._ready()).core)
        return (await member.depth("dead")).dead

    await eventually(left, 0, 5.0)
    assert stricter.metrics().purged == 3
    assert "dead letters purged" in caplog.text
    assert [event.what for event in (await stricter.explain(letter.id)).events][-1] == "purged"


async def _age(fabric: Fabric, since: float) -> bool:
    return fabric.backend.now() - since > 1.1


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_an_agent_that_is_forgotten_leaves_nothing(fabric: Fabric, mode: Mode) -> None:
    """Who gets its name later gets nothing of what was sent to it."""
    member = await fabric.member()
    await member.subscribe("gone", mode=mode)
    await member.send(task("gone", 1))
    await (await take_one(member, "gone")).reject("no")
    await member.send(task("gone", 2))
    await member.send(task("gone", 3), delay_s=3_600)
    await eventually(lambda: forgotten(member, "gone"), True, 20.0)
    assert await member.dead_letters("gone") == []
    assert await member.replay("gone") == 0
    assert counts(await member.depth("gone")) == (0, 0, 0, 0)
    await member.send(task("gone", 4))
    assert [delivery.message.content for delivery in await take(member, "gone", 1)] == [task("gone", 4).content]
    await empty(member, "gone")


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_what_was_forgotten_counts_no_more(fabric: Fabric, mode: Mode) -> None:
    """Neither as waiting nor as lost, whatever became of it before."""
    before = await fabric.member()
    await before.subscribe("gone", mode=mode)
    await before.send_many([task("gone", n, key=f"k{n}") for n in range(12)])
    await take(before, "gone", 2)
    for _ in range(2):
        await (await take_one(before, "gone")).nack(delay_s=3_600)
    await take_one(before, "gone")
    await before.close()
    member = await fabric.member()
    await eventually(lambda: forgotten(member, "gone"), True, 20.0)
    await member.subscribe("gone", mode=mode)
    assert counts(await member.depth("gone")) == (0, 0, 0, 0)
    await member.send(task("gone", 12))
    assert counts(await member.depth("gone")) == (1, 0, 0, 0)
    assert [delivery.message.content for delivery in await take(member, "gone", 1)] == [task("gone", 12).content]
    await empty(member, "gone")
    assert member.metrics().lost == 0


@pytest.mark.parametrize("delayed_only", [False, True])
async def test_each_look_but_the_last_is_full(fabric: Fabric, delayed_only: bool) -> None:
    """Whoever looks through a queue takes a look that is not full for the last one: contents of what he has not seen
    would be deleted."""
    if not fabric.can_look:
        return  # nobody looks through it, and nothing is swept
    protocol = await fabric.member()
    held = [task("coder", n, key=f"k{n % 4}") for n in range(13)]
    later = [task("coder", n, key=f"k{n % 4}") for n in range(13, 20)]
    await protocol.send_many(held)
    for message in later:
        await protocol.send(message, delay_s=3_600)
    done = {delivery.message.id for delivery in await take(protocol, "coder", 3)}
    wanted = {message.id for message in (later if delayed_only else [*held, *later])} - done
    for limit in (1, 3, 4, 100):
        seen: list[str] = []
        after: str | None = None
        while True:
            page = await protocol.backend.peek("coder", limit, after, delayed_only=delayed_only)
            seen += [waiting.record.id for waiting in page]
            if len(page) < limit:
                break
            after = page[-1].cursor
        assert len(seen) == len(set(seen))
        assert set(seen) == wanted
