"""Effects: `once` computes once, whoever asks and whoever dies in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import pytest

from hivewire.backend import Entry
from hivewire.coordination.worker import Context, Worker
from hivewire.errors import BackendError, ConnectionLost, Reject
from hivewire.message import Message
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import empty, letter_of_the_work, task
from hivewire.testing.conformance.waiting import count, until


async def test_of_many_who_ask_at_once_one_computes(fabric: Fabric) -> None:
    computed: list[int] = []
    other = await fabric.member()

    async def compute() -> int:
        computed.append(1)
        await asyncio.sleep(0.05)
        return len(computed)

    asked = [protocol.once("s", "n", compute) for protocol in (fabric.protocol, other) for _ in range(10)]
    assert await asyncio.gather(*asked) == [1] * 20
    assert computed == [1]


async def test_who_waits_computes_when_the_first_fails(fabric: Fabric) -> None:
    other = await fabric.member()
    began, may_fail = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        began.set()
        await may_fail.wait()
        raise OSError("no")

    async def work() -> str:
        return "fine"

    first = asyncio.create_task(fabric.protocol.once("s", "n", fail))
    await began.wait()
    second = asyncio.create_task(other.once("s", "n", work))
    may_fail.set()
    assert await second == "fine"
    with pytest.raises(OSError, match="no"):
        await first


async def test_a_cancelled_attempt_leaves_the_effect_to_the_next(fabric: Fabric) -> None:
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(fabric.protocol.once("s", "n", hang))
    await began.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    async def work() -> str:
        return "fine"

    assert await fabric.protocol.once("s", "n", work) == "fine"


async def test_what_has_happened_is_stored_though_the_caller_is_cancelled(fabric: Fabric) -> None:
    """As when its worker is stopped, at whatever point: nobody does it again."""
    for turns in range(12):
        happened: list[int] = []
        has_happened = asyncio.Event()
        calling = asyncio.create_task(fabric.protocol.once("s", f"n{turns}", _noted_in(happened, has_happened)))
        await has_happened.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        calling.cancel()
        await asyncio.wait([calling])
        assert await fabric.protocol.once("s", f"n{turns}", _noted_in(happened)) == 1
        assert happened == [1]


async def test_what_has_happened_is_stored_when_the_store_is_back(fabric: Fabric) -> None:
    member = await fabric.member()
    happened: list[int] = []
    put, failing = member.backend.put, 0

    async def away(key: str, value: bytes, version: int, **options: Any) -> Entry | None:
        nonlocal failing
        if happened and failing < 4:
            failing += 1
            if failing == 2:  # it was stored, and the answer is lost
                await put(key, value, version, **options)
            raise ConnectionLost("the store is away")
        return await put(key, value, version, **options)

    with patch.object(member.backend, "put", away):
        assert await member.once("s", "n", _noted_in(happened)) == 1
    assert failing == 4
    assert await fabric.protocol.once("s", "n", _noted_in(happened)) == 1
    assert happened == [1]


async def test_what_has_happened_is_stored_though_its_process_ends(fabric: Fabric) -> None:
    """A handler is cancelled while its effect is being stored, and the protocol is closed at once."""
    member = await fabric.member()
    happened: list[int] = []
    put, storing = member.backend.put, asyncio.Event()

    async def slowly(key: str, value: bytes, version: int, **options: Any) -> Entry | None:
        if happened:
            storing.set()
            await asyncio.sleep(0.1)
        return await put(key, value, version, **options)

    with patch.object(member.backend, "put", slowly):
        calling = asyncio.create_task(member.once("s", "n", _noted_in(happened)))
        await storing.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await member.close()
    assert await fabric.protocol.once("s", "n", _noted_in(happened)) == 1
    assert happened == [1]


def _noted_in(happened: list[int], event: asyncio.Event | None = None) -> Callable[[], Awaitable[int]]:
    async def happen() -> int:
        happened.append(1)
        if event is not None:
            event.set()
        return len(happened)

    return happen


@pytest.mark.parametrize("result", [object(), "\ud800"], ids=["object", "half"])
@pytest.mark.parametrize("is_plain", [False, True], ids=["async", "plain"])
async def test_an_effect_whose_result_cannot_be_kept_is_not_repeated(
    fabric: Fabric, result: object, is_plain: bool
) -> None:
    worker, happened = Worker("odd"), list[str]()

    def happen() -> object:
        happened.append("paid")
        return result

    async def handle(message: Message, ctx: Context) -> None:
        await ctx.once("pay", happen)

    def handle_in_a_thread(message: Message, ctx: Context) -> None:
        ctx.blocking.once("pay", happen)

    worker.on("task")(handle_in_a_thread if is_plain else handle)
    letter = await letter_of_the_work(fabric.protocol, worker, task("odd", 1))
    assert (letter.reason, happened) == ("rejected", ["paid"])
    assert "the result of the effect 'pay' cannot be kept as JSON" in letter.error


async def test_an_effect_whose_result_the_store_refuses_is_not_repeated(fabric: Fabric) -> None:
    """As a broker refuses what is too large for a message of its."""
    member = await fabric.member()
    happened: list[int] = []
    put = member.backend.put

    async def refuse(key: str, value: bytes, version: int, **options: Any) -> Entry | None:
        if happened:
            raise BackendError("too large")
        return await put(key, value, version, **options)

    with patch.object(member.backend, "put", refuse), pytest.raises(Reject, match="cannot be stored: too large"):
        await member.once("s", "n", _noted_in(happened))
    assert happened == [1]


async def test_an_effect_longer_than_the_lease_stays_with_who_began_it(fabric: Fabric) -> None:
    other = await fabric.member()
    computed: list[str] = []

    def slow(name: str) -> Any:
        async def compute() -> str:
            computed.append(name)
            await asyncio.sleep(1.5 * fabric.lease_s)
            return name

        return compute

    first = asyncio.create_task(fabric.protocol.once("s", "n", slow("first")))
    await until(lambda: bool(computed), "it runs")
    assert await other.once("s", "n", slow("second")) == "first"
    assert await first == "first"
    assert computed == ["first"]


async def test_only_an_attempt_after_another_looks_whether_it_has_happened(fabric: Fabric) -> None:
    found: list[int] = []

    async def look() -> str:
        found.append(1)
        return "it had happened"

    async def fail() -> None:
        raise OSError("after the effect")

    with pytest.raises(OSError, match="after the effect"):
        await fabric.protocol.once("s", "n", fail, look)
    assert found == []
    assert await fabric.protocol.once("s", "n", fail, look) == "it had happened"
    assert await fabric.protocol.once("s", "n", fail) == "it had happened"
    assert found == [1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_effects_happen_once_though_workers_die_between_effect_and_record(fabric: Fabric) -> None:
    """Each worker dies at its first effect; another comes in its place. Without `find` each would be there twice."""
    effects = count(6, 1000)
    path = fabric.folder / "effects.txt"
    worker = await fabric.worker("payer", program="worker")
    for n in range(effects):
        dies = n % 2 == 0
        message = task("payer", n, ("effect", str(path), int(dies)), key=f"k{n}")
        await fabric.protocol.send(message)
        if dies:
            await worker.ended()
            worker = await fabric.worker("payer", program="worker")
        await empty(fabric.protocol, "payer", within_s=30)
    lines = Counter(path.read_text().split())
    assert len(lines) == effects
    assert set(lines.values()) == {1}
