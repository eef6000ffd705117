"""Schedules fire once however many are there, and no time is lost; delayed messages are listed and cancelled."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.engine.schedules import NAMES
from hivewire.errors import MessageError, QueueFull, Unsupported
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import counts, empty, nothing_for, number, serving, take, task
from hivewire.testing.conformance.waiting import eventually, until


def _tick(to: str = "clock", **fields: Any) -> Message:
    return Message(type="tick", sender="tester", to=to, content={"n": 1}, **fields)


class _Clock:
    """What a handler has seen of schedules: due times, in the order of their handling."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.seen.append(delivery.message)

    @property
    def due(self) -> list[float]:
        return [datetime.fromisoformat(message.metadata["due_at"]).timestamp() for message in self.seen]

    def assert_every(self, every_s: float) -> None:
        """Each time once, in order, none left out."""
        due = self.due
        steps = [round((later - earlier) / every_s, 3) for earlier, later in pairwise(due)]
        assert steps == [1.0] * (len(due) - 1), due
        assert len({message.id for message in self.seen}) == len(due)


@pytest.mark.slow
async def test_fired_once_with_many_members_there(fabric: Fabric) -> None:
    members = [fabric.protocol] + [await fabric.member() for _ in range(3)]
    await asyncio.gather(*(member.schedule("beat", 0.3, _tick()) for member in members))
    clock = _Clock()
    async with serving(members[1], "clock", clock), serving(members[2], "clock", clock):
        await until(lambda: len(clock.seen) >= 8, "8 beats", 15)
    assert clock.seen[0].metadata["schedule"] == "beat"
    assert clock.seen[0].content == {"n": 1}
    assert all(
        0 <= (message.created_at.timestamp() - due) < 3 for message, due in zip(clock.seen, clock.due, strict=True)
    )
    if all(message.metadata["missed"] == 0 for message in clock.seen):
        clock.assert_every(0.3)
    assert len(set(clock.due)) == len(clock.due)
    await fabric.protocol.unschedule("beat")
    (none,) = [await fabric.protocol.schedules()]
    assert none == []
    assert sum(member.metrics().fired for member in members) >= len(clock.seen)


async def test_no_time_is_lost_over_a_restart(fabric: Fabric) -> None:
    if not fabric.durable:
        return
    clock = _Clock()
    await fabric.protocol.schedule("beat", "500ms", _tick(), catch_up="all")
    async with serving(fabric.protocol, "clock", clock):
        await until(lambda: len(clock.seen) >= 2, "2 beats", 15)
    await asyncio.sleep(0.6)  # some are fired and wait
    await fabric.restart()
    await asyncio.sleep(1.5)  # nobody is there for some
    async with serving(fabric.protocol, "clock", clock):
        await until(lambda: len(clock.seen) >= 9, "9 beats", 15)
    clock.assert_every(0.5)


async def _asleep(fabric: Fabric, **options: Any) -> _Clock:
    """A schedule whose times nobody saw for 3 s; what comes of it when somebody is there again."""
    other = await fabric.member()
    await other.schedule("beat", 0.5, _tick(), **options)
    key = "schedule/beat"
    entry = await fabric.backend.get(key)
    await other.unschedule("beat")
    await drain(other)
    await asyncio.sleep(2.5)
    # As it was, with its times of these seconds unfired.
    tomb = await fabric.backend.get(key)
    assert await fabric.backend.put(key, entry.value, tomb.version) is not None
    names = await fabric.backend.get("schedules")
    assert await fabric.backend.put("schedules", b'["beat"]', names.version) is not None
    clock = _Clock()
    async with serving(fabric.protocol, "clock", clock):
        await until(lambda: len(clock.seen) >= 3, "3 beats", 20)
    await fabric.protocol.unschedule("beat")
    return clock


async def drain(protocol: Engine) -> None:
    for delivery in await protocol.receive("clock", limit=100, wait_s=0.2):
        await delivery.ack()


@pytest.mark.slow
async def test_of_missed_times_the_latest_is_made_good(fabric: Fabric) -> None:
    clock = await _asleep(fabric)
    assert clock.seen[0].metadata["missed"] >= 4
    assert clock.seen[0].created_at.timestamp() - clock.due[0] < 0.5 + 2.0


@pytest.mark.slow
async def test_of_missed_times_each_is_made_good_if_asked(fabric: Fabric) -> None:
    clock = await _asleep(fabric, catch_up="all")
    clock.assert_every(0.5)
    assert clock.seen[-1].metadata["missed"] == 0
    assert clock.seen[0].created_at.timestamp() - clock.due[0] > 2.0


@pytest.mark.slow
async def test_who_dies_between_sending_and_moving_on_makes_no_second_message(fabric: Fabric) -> None:
    protocol = fabric.protocol
    clock = _Clock()
    await protocol.schedule("once", 2.0, _tick())
    before = await fabric.backend.get("schedule/once")
    async with serving(protocol, "clock", clock):
        await until(lambda: len(clock.seen) == 1, "a first beat", 15)

        async def moved() -> bool:
            return (await fabric.backend.get("schedule/once")).version != before.version

        await eventually(moved, True, 10)
        after = await fabric.backend.get("schedule/once")
        # As if nobody had moved it on: the same time is due again.
        assert await fabric.backend.put("schedule/once", before.value, after.version) is not None
        fired = protocol.metrics().fired
        await until(lambda: len(clock.seen) >= 2, "the next beat", 15)
    assert protocol.metrics().fired > fired
    assert clock.due[1] - clock.due[0] >= 2.0
    assert len({message.id for message in clock.seen}) == len(clock.seen)


@pytest.mark.slow
async def test_a_member_that_is_killed_takes_no_schedule_with_it(fabric: Fabric) -> None:
    worker = await fabric.worker("clock")
    await fabric.protocol.schedule("beat", 0.5, task("clock", 7))
    await until(lambda: len(fabric.journal.ends("clock")) >= 2, "2 beats", 15)
    second = await fabric.worker("clock")
    worker.kill()
    await until(lambda: len([e for e in fabric.journal.ends("clock") if e.worker == second.name]) >= 3, "3 more", 20)
    await fabric.protocol.unschedule("beat")
    ended: dict[str, list[str]] = {}
    for entry in fabric.journal.ends("clock"):
        ended.setdefault(entry.id, []).append(entry.worker)
    # The one that was killed may have handled its last beat and not acknowledged it.
    assert [by for by in ended.values() if len(by) > 1] in ([], [[worker.name, second.name]])


async def test_a_distance_is_said_in_several_ways(fabric: Fabric) -> None:
    protocol, began = fabric.protocol, fabric.backend.now()
    distances: list[str | float] = [300, "300", "5m", "@every 5m"]
    for n, when in enumerate(distances):
        await protocol.schedule(f"beat {n}", when, _tick())
    ended = fabric.backend.now()
    found = await protocol.schedules()
    assert len(found) == 4
    assert all(began + 299.9 <= each.next_at <= ended + 300.1 for each in found)
    with pytest.raises(MessageError, match="too often"):
        await protocol.schedule("beat", "@every 0s", _tick())


async def test_made_again_it_stays_as_it_is(fabric: Fabric) -> None:
    protocol = fabric.protocol
    await protocol.schedule("nightly", "30 3 * * *", _tick(), timezone="Europe/Berlin")
    (first,) = await protocol.schedules()
    assert (first.name, first.when, first.timezone, first.catch_up) == ("nightly", "30 3 * * *", "Europe/Berlin", "one")
    assert first.message.content == {"n": 1}
    assert (first.last_at, first.fired) == (0.0, 0)
    assert first.next_at % 3_600 == 1_800
    assert 0 < first.next_at - fabric.backend.now() <= 25 * 3_600
    other = await fabric.member()
    await other.schedule("nightly", "30 3 * * *", _tick(), timezone="Europe/Berlin")
    await other.schedule("ten", 10, _tick())
    assert [each.name for each in await protocol.schedules()] == ["nightly", "ten"]
    (again, ten) = await protocol.schedules()
    assert again == first
    await other.schedule("ten", 10, _tick(priority=8))
    assert (await protocol.schedules())[1] == replace(ten, message=ten.message.replace(priority=8))
    await other.schedule("ten", "@yearly", _tick())
    assert (await protocol.schedules())[1].next_at > ten.next_at + 60


@pytest.mark.slow
async def test_who_is_left_fires_at_the_times_that_another_has_set(fabric: Fabric) -> None:
    """A time that was moved to an earlier one is seen by those who knew of the later."""
    left = fabric.protocol  # the only one: one more would read the list for the first time after some seconds
    await left.schedule("beat", "@yearly", _tick())
    await eventually(lambda: _knows(left, "beat"), True, 15)
    other = fabric.connect()
    async with other:
        await other.schedule("beat", 2.0, _tick())
    await take(left, "clock", 1)  # the other one has gone before the first was due


async def _knows(member: Engine, name: str) -> bool:
    """And will not look again by itself: it has seen the list of names as it is now."""
    assert member._parts is not None
    schedules = member._parts.schedules
    return name in schedules._known and schedules._version == (await member.backend.get(NAMES)).version


@pytest.mark.slow
async def test_unscheduled_it_fires_no_more(fabric: Fabric) -> None:
    protocol = fabric.protocol
    other = await fabric.member()
    await other.schedule("beat", 0.3, _tick())
    await take(protocol, "clock", 2)
    assert sorted(await asyncio.gather(*(member.unschedule("beat") for member in (protocol, other)))) == [False, True]
    assert await protocol.unschedule("beat") is False
    assert await protocol.schedules() == []
    await asyncio.sleep(0.5)  # what was being sent
    await drain(protocol)
    await nothing_for(protocol, "clock", 1.0)
    await protocol.schedule("beat", 0.3, _tick())
    await take(protocol, "clock", 1)


@pytest.mark.slow
async def test_a_full_queue_delays_and_loses_nothing(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=1)
    await member.send(task("clock", 0))
    with pytest.raises(QueueFull):
        await member.send(task("clock", 1), timeout_s=0.05)
    await member.schedule("beat", 0.5, _tick(), catch_up="all")
    await asyncio.sleep(1.2)
    clock = _Clock()
    await take(member, "clock", 1)
    async with serving(member, "clock", clock):
        await until(lambda: len(clock.seen) >= 4, "4 beats", 20)
    clock.assert_every(0.5)


async def test_two_schedules_do_not_hold_each_other_up(fabric: Fabric) -> None:
    member = await fabric.member(queue_cap=1)
    await member.send(task("full", 0))
    await member.schedule("stuck", 0.3, _tick("full"))
    await member.schedule("free", 0.3, _tick("clock"))
    clock = _Clock()
    async with serving(member, "clock", clock):
        await until(lambda: len(clock.seen) >= 1, "the free one", 20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"when": "61 * * * *"}, "minute '61'"),
        ({"when": "tomorrow"}, "1 fields"),
        ({"when": 0}, "too often"),
        ({"when": -5.0}, "too often"),
        ({"when": 1e12}, "too seldom"),
        ({"when": "0 3 * * *", "timezone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ({"when": "0 3 * * *", "timezone": "../../etc/passwd"}, "time zone"),
        ({"timezone": "Mars/Base"}, "no time zone 'Mars/Base'"),
        ({"catch_up": "some"}, "catch_up"),
        ({"name": ""}, "a name is"),
        ({"name": "a\nb"}, "a name is"),
        ({"name": "x" * 257}, "a name is"),
        ({"to": ""}, "agent"),
        ({"to": "no spaces"}, "agent"),
        ({"content": "x" * 300_000}, "262144"),
    ],
)
async def test_what_cannot_be_is_refused(fabric: Fabric, options: dict[str, Any], says: str) -> None:
    given = {"name": "beat", "when": 5.0, "to": "clock", "content": None, **options}
    message = Message(type="tick", sender="tester", to=given.pop("to"), content=given.pop("content"))
    with pytest.raises(MessageError) as caught:
        await fabric.protocol.schedule(given.pop("name"), given.pop("when"), message, **given)
    assert says in str(caught.value)
    assert await fabric.protocol.schedules() == []


# Delayed messages


async def test_delayed_messages_are_listed_the_soonest_first(fabric: Fabric) -> None:
    protocol = fabric.protocol
    if not fabric.can_look:
        with pytest.raises(Unsupported):
            await protocol.delayed("later")
        return
    began = fabric.backend.now()
    for n in (3, 1, 2):
        await protocol.send(task("later", n, key=str(n)), delay_s=60.0 * n)
    await protocol.send(task("later", 4))
    await protocol.send(task("other", 5), delay_s=60)
    listed = await protocol.delayed("later")
    assert [each.message.content["n"] for each in listed if each.message] == [1, 2, 3]
    assert all(-0.05 <= each.due_at - began - 60 * n < 10 for n, each in enumerate(listed, 1))
    assert all(began - 1 <= each.stored_at <= began + 10 for each in listed)
    first = await protocol.delayed("later", limit=1)
    assert first == listed[:1]
    assert await protocol.delayed("later", limit=5, after=first[0].cursor) == listed[1:]
    assert await protocol.delayed("later", limit=5, after=first[0].id) == listed[1:]
    assert await protocol.delayed("nobody") == []


async def test_a_cancelled_message_is_never_handled(fabric: Fabric) -> None:
    protocol = fabric.protocol
    messages = [task("later", n, key="k") for n in range(4)]
    for message in messages:
        await protocol.send(message, delay_s=1.5)
    ids = [messages[1].id, messages[3].id]
    if not fabric.can_withdraw:
        with pytest.raises(Unsupported):
            await protocol.cancel_delayed(ids)
        return
    assert await protocol.cancel_delayed({*ids, "nobody"}) == 2
    assert await protocol.cancel_delayed(ids) == 0
    assert counts(await protocol.depth("later")) == (0, 0, 2, 0)
    assert [number(delivery) for delivery in await take(protocol, "later", 2)] == [0, 2]
    await empty(protocol, "later")
    assert (await protocol.explain(ids[0])).events[-1].what == "cancelled"


@pytest.mark.slow
async def test_what_has_fallen_due_is_not_cancelled(fabric: Fabric) -> None:
    if not fabric.can_withdraw:
        return
    protocol = fabric.protocol
    due, retried = task("later", 1, key="a"), task("later", 2, key="b")
    await protocol.send(due, delay_s=0.1)
    await protocol.send(retried)
    (delivery,) = await protocol.receive("later", limit=1, wait_s=5)
    await delivery.nack(5.0)
    await asyncio.sleep(0.3)
    assert await protocol.cancel_delayed([due.id, retried.id]) == 0
    assert sorted(number(delivery) for delivery in await take(protocol, "later", 2)) == [1, 2]


async def test_of_those_who_cancel_at_once_one_has_done_it(fabric: Fabric) -> None:
    if not fabric.can_withdraw:
        return
    members = [fabric.protocol] + [await fabric.member() for _ in range(3)]
    batch = [task("later", n, key=str(n)) for n in range(600)]
    await asyncio.gather(*(fabric.protocol.send(message, delay_s=60 + n % 7) for n, message in enumerate(batch)))
    ids = [message.id for message in batch]
    done = await asyncio.gather(*(member.cancel_delayed(ids[10:], agent="later") for member in members))
    assert sum(done) == 590
    left = await fabric.protocol.delayed("later", limit=1_000)
    assert sorted(each.id for each in left) == sorted(ids[:10])
    assert counts(await fabric.protocol.depth("later")) == (0, 0, 10, 0)


@pytest.mark.slow
async def test_beside_its_time_a_message_is_cancelled_or_handled_and_never_both(fabric: Fabric) -> None:
    """Also when one of those who handle is killed meanwhile."""
    if not fabric.can_withdraw:
        return
    protocol = fabric.protocol
    first = await fabric.worker("later", concurrency=8)
    await fabric.worker("later", concurrency=8)
    batch = [task("later", n, key=f"k{n % 9}") for n in range(60)]
    await asyncio.gather(*(protocol.send(message, delay_s=1.0 + 0.05 * n) for n, message in enumerate(batch)))
    cancelled = set()
    for n, each in enumerate(await protocol.delayed("later", limit=len(batch))):
        if n == 30:
            first.kill()
        await asyncio.sleep(max(0.0, each.due_at - 0.015 * (n % 6) - fabric.backend.now()))
        if await protocol.cancel_delayed([each.id], agent="later"):
            cancelled.add(each.id)
    await empty(protocol, "later", within_s=40)
    handled = {entry.id for entry in fabric.journal.starts("later")}
    assert not handled & cancelled
    assert handled | cancelled == {message.id for message in batch}
