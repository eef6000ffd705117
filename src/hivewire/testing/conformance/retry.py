"""Promise 6: failed attempts come again later and later, and delay no other key."""

from __future__ import annotations

import asyncio

from hivewire.delivery import Delivery
from hivewire.errors import QueueFull, Reject, RetryAfter
from hivewire.rules.retry import Retry
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import (
    counts,
    empty,
    number,
    one_letter,
    send_numbered,
    serving,
    take_one,
    task,
)
from hivewire.testing.conformance.waiting import count, until


class _Attempts:
    """A handler that always fails and notes when it was called."""

    def __init__(self, error: Exception, good_from: int = 1_000) -> None:
        self.at: list[float] = []
        self.numbers: list[int] = []
        self._error = error
        self._good_from = good_from

    async def __call__(self, delivery: Delivery) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.numbers.append(delivery.attempt)
        if delivery.attempt < self._good_from:
            raise self._error

    @property
    def waits(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.at, self.at[1:], strict=False)]


async def test_delays_stay_under_their_ceiling_and_rise(fabric: Fabric) -> None:
    """Full jitter: uniform between 0 and `Retry.ceiling_s`."""
    policy = Retry(max_attempts=6, first_s=0.1, most_s=0.4, factor=2.0)
    lanes = [f"k{n}" for n in range(30)]
    starts: dict[str, list[float]] = {}

    async def fail(delivery: Delivery) -> None:
        starts.setdefault(str(delivery.message.key), []).append(asyncio.get_running_loop().time())
        raise RuntimeError("no")

    await send_numbered(fabric.protocol, "jitter", 1, keys=lanes)
    async with serving(fabric.protocol, "jitter", fail, concurrency=8, retry=lambda _type: policy):
        await empty(fabric.protocol, "jitter", dead=len(lanes))
    waits = [[at[n + 1] - at[n] for at in starts.values()] for n in range(5)]
    slack = 0.3
    for failures, sample in enumerate(waits, start=1):
        assert len(sample) == len(lanes)
        assert max(sample) <= policy.ceiling_s(failures) + slack, f"after {failures} failures: {max(sample)}"
    assert sum(waits[4]) > 1.3 * sum(waits[0])
    assert max(waits[4]) - min(waits[4]) > 0.2, "no jitter"


async def test_retry_after_is_kept(fabric: Fabric) -> None:
    handler = _Attempts(RetryAfter(0.5), good_from=3)
    await fabric.protocol.send(task("after"))
    async with serving(fabric.protocol, "after", handler):
        await empty(fabric.protocol, "after")
    assert handler.numbers == [1, 2, 3]
    assert all(0.45 <= wait < 1.5 for wait in handler.waits), handler.waits


async def test_retry_after_counts_as_an_attempt(fabric: Fabric) -> None:
    handler = _Attempts(RetryAfter(0.0))
    await fabric.protocol.send(task("counts"))
    async with serving(fabric.protocol, "counts", handler):
        await one_letter(fabric.protocol, "counts")
    assert handler.numbers == [1, 2, 3, 4, 5]


async def test_a_nack_s_delay_is_kept(fabric: Fabric) -> None:
    await fabric.protocol.send(task("delay"))
    for delay_s in (0.2, 0.5):
        delivery = await take_one(fabric.protocol, "delay")
        began = asyncio.get_running_loop().time()
        await delivery.nack(delay_s=delay_s)
        assert counts(await fabric.protocol.depth("delay")) == (0, 0, 1, 0)
        delivery = await take_one(fabric.protocol, "delay")
        waited = asyncio.get_running_loop().time() - began
        assert delay_s - 0.05 <= waited <= delay_s + 1.0
        await delivery.nack(delay_s=0)


async def test_max_attempts_is_a_setting(fabric: Fabric) -> None:
    member = await fabric.member(max_attempts=2)
    handler = _Attempts(ValueError("never"))
    await member.send(task("most"))
    async with serving(member, "most", handler):
        letter = await one_letter(member, "most")
    assert handler.numbers == [1, 2]
    assert letter.attempts == 2


async def test_the_policy_may_differ_by_type(fabric: Fabric) -> None:
    seen: list[str] = []
    once = Retry(max_attempts=1)

    async def fail(delivery: Delivery) -> None:
        seen.append(delivery.message.type)
        raise RuntimeError("no")

    await fabric.protocol.send(task("types", key="a").replace(type="once"))
    await fabric.protocol.send(task("types", key="b").replace(type="more"))
    async with serving(fabric.protocol, "types", fail, retry=lambda kind: once if kind == "once" else None):
        await empty(fabric.protocol, "types", dead=2)
    assert (seen.count("once"), seen.count("more")) == (1, 5)


async def test_reject_is_never_tried_again(fabric: Fabric) -> None:
    handler = _Attempts(Reject("it is nonsense"))
    await fabric.protocol.send(task("reject"))
    async with serving(fabric.protocol, "reject", handler):
        letter = await one_letter(fabric.protocol, "reject")
    assert handler.numbers == [1]
    assert "it is nonsense" in letter.reason + letter.error


async def test_a_failing_key_does_not_delay_others(fabric: Fabric) -> None:
    seen: list[str] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.message.key == "bad":
            raise RetryAfter(30)
        seen.append(str(delivery.message.key))

    await send_numbered(fabric.protocol, "lanes", 5, keys=["bad", "good", "fine"])
    async with serving(fabric.protocol, "lanes", handle):
        await until(lambda: len(seen) == 10, "the others are done")


async def test_many_failing_keys_do_not_delay_others(fabric: Fabric) -> None:
    bad = [f"bad{n}" for n in range(count(200, 2000))]
    seen: list[int] = []

    async def handle(delivery: Delivery) -> None:
        if str(delivery.message.key).startswith("bad"):
            raise RetryAfter(30)
        seen.append(number(delivery))

    await send_numbered(fabric.protocol, "crowd", 3, keys=bad)
    await send_numbered(fabric.protocol, "crowd", 20, keys=["good"])
    async with serving(fabric.protocol, "crowd", handle, concurrency=4):
        await until(lambda: len(seen) == 20, "the good lane is done")
    assert seen == list(range(20))


async def test_a_long_lane_behind_a_failure_delays_nobody(fabric: Fabric) -> None:
    lane = count(1_500, 20_000)
    await send_numbered(fabric.protocol, "long", lane, keys=["bad"])
    await send_numbered(fabric.protocol, "long", 5, keys=[f"g{n}" for n in range(20)])
    seen: list[int] = []
    release = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.key != "bad":
            seen.append(-1)
        elif number(delivery) == 0 and not release.is_set():
            raise QueueFull("not yet")  # delays, and is not an attempt
        else:
            seen.append(number(delivery))

    async with serving(fabric.protocol, "long", handle, concurrency=4):
        await until(lambda: seen.count(-1) == 100, "the others are done", 20)
        assert len(seen) == 100
        release.set()
        await until(lambda: len(seen) == 100 + lane, "the lane is done", 40)
    assert [n for n in seen if n >= 0] == list(range(lane))


async def test_queue_full_in_a_handler_is_not_an_attempt(fabric: Fabric) -> None:
    handler = _Attempts(QueueFull("downstream"))
    attempts = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 8:
            await handler(delivery)

    await fabric.protocol.send(task("full"))
    async with serving(fabric.protocol, "full", handle):
        await empty(fabric.protocol, "full", within_s=30)
    assert attempts == 9
