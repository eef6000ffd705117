"""What must not grow or last without bounds: closing a store that does not answer, and many joins at once."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

import hivewire as hw
from hivewire.backend import Append, Duplicate, Entry, Room
from hivewire.backends.memory import MemoryBackend
from hivewire.backends.memory.consumer import MemoryConsumer
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, ConnectionLost, QueueFull
from hivewire.record import Fetched, Record
from hivewire.settings import Settings
from hivewire.testing.conformance.scenario import serving
from hivewire.testing.virtual_time import virtual


def engine_on(kind: type[MemoryBackend]) -> Engine:
    settings = Settings(protocol="inmemory", url=f"memory://{secrets.token_hex(8)}")
    return Engine(settings, kind(settings))


@virtual
@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_slow_failure_counts_towards_the_time_out(is_plain: bool) -> None:
    """A store that is away may take seconds to say so, at each try."""

    class Away(MemoryBackend):
        def append_now(self, queue: str, record: Record, room: Room) -> bool:
            return False

        def append_soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
            return asyncio.ensure_future(self._away()) if is_plain else None

        async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
            await self._away()
            return {}

        async def _away(self) -> BackendError | None:
            await asyncio.sleep(4.0)
            raise ConnectionLost("nobody is there")

    engine = engine_on(Away)
    await engine.__aenter__()
    message = hw.Message(type="task", sender="me", to="coder")
    for timeout_s in (10.0, 2.0):
        began = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionLost, match="nobody is there"):
            await engine.send(message, timeout_s=timeout_s)
        assert asyncio.get_running_loop().time() - began == pytest.approx(max(timeout_s, 4.0), abs=0.01)
    await engine.close(drain_s=0)


FULL, REFUSED = QueueFull("there is no room"), BackendError("the server may not store that")


@virtual
@pytest.mark.parametrize("said", [[FULL], [REFUSED], [REFUSED, FULL]])
async def test_who_has_no_time_left_to_wait_in_line_is_told_what_the_store_said(said: list[BackendError]) -> None:
    class Full(MemoryBackend):
        def append_now(self, queue: str, record: Record, room: Room) -> bool:
            return False

        async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
            if batch[0].records[0].sender == "first":
                await asyncio.sleep(1.0)
                return {0: FULL}
            await asyncio.sleep(4.0)
            return dict(enumerate(said))

    engine = engine_on(Full)
    await engine.__aenter__()
    first = asyncio.create_task(engine.send(hw.Message(type="task", sender="first", to="coder"), timeout_s=10.0))
    await asyncio.sleep(0.5)  # it is under way
    with pytest.raises(BackendError) as told:
        await engine.send_many([hw.Message(type="task", sender="me", to="coder") for _ in said], timeout_s=2.0)
    assert told.value is said[0]
    with pytest.raises(QueueFull):
        await first
    await engine.close(drain_s=0)


@virtual
async def test_a_driver_whose_close_hangs_does_not_keep_the_protocol_from_closing() -> None:
    class Stuck(MemoryBackend):
        async def close(self) -> None:
            await asyncio.Event().wait()

    engine = engine_on(Stuck)
    await engine.__aenter__()
    await engine.receive("me", wait_s=0.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await engine.close(drain_s=1.0)
    assert loop.time() - began < 30.0


@virtual
async def test_a_consumer_whose_close_hangs_does_not_keep_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_on(MemoryBackend)
    await engine.__aenter__()
    for agent in ("first", "second"):
        await engine.receive(agent, wait_s=0.0)
    closed: list[str] = []

    async def close(consumer: MemoryConsumer) -> None:
        queue = consumer._queue.spec.name
        if queue == "first":
            await asyncio.Event().wait()  # it hangs
        closed.append(queue)

    monkeypatch.setattr(MemoryConsumer, "close", close)
    await engine.close(drain_s=1.0)
    assert "second" in closed


@virtual
async def test_the_look_ups_of_joins_do_not_grow_with_the_square_of_their_number() -> None:
    reads: Counter[str] = Counter()

    class Counted(MemoryBackend):
        async def get(self, key: str) -> Entry:
            reads[key] += 1
            return await super().get(key)

    async with engine_on(Counted) as engine:
        await asyncio.gather(*(engine.subscribe(f"a{number}", groups=["g"]) for number in range(200)))
        await engine.broadcast(hw.Message(type="news", sender="me"), "g")
    assert reads["group/g"] < 5 * 200


@virtual
async def test_a_start_that_cannot_be_noted_yet_is_no_error_of_who_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, start, refused = MemoryConsumer.fetch, MemoryConsumer.start, 3

    async def unmarked(consumer: MemoryConsumer, limit: int, wait_s: float, **options: int) -> Sequence[Fetched]:
        return await fetch(consumer, limit, wait_s, **(options | {"starting": 0}))

    async def away(consumer: MemoryConsumer, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise ConnectionLost("mark: the group is sharing out its partitions")
        return await start(consumer, batch)

    monkeypatch.setattr(MemoryConsumer, "fetch", unmarked)
    monkeypatch.setattr(MemoryConsumer, "start", away)
    engine = engine_on(MemoryBackend)
    async with engine:
        await engine.send(hw.Message(type="task", sender="me", to="late"))
        assert await engine.receive("late", wait_s=0.0) == []
        (delivery,) = await engine.receive("late", wait_s=5.0)
        assert delivery.attempt == 1
        await delivery.ack()
    assert refused < 0


async def test_replies_are_not_remembered_by_their_places() -> None:
    """There may be very many, and the store has nothing that was made of them."""
    url = f"memory://{secrets.token_hex(8)}"
    async with hw.connect(url) as caller, hw.connect(url) as other:
        assert isinstance(caller, Engine)

        async def answer(delivery: Delivery) -> None:
            await other.reply(delivery.message, 1)

        async with serving(other, "oracle", answer):
            for _ in range(3):
                await caller.request(hw.Message(type="task", sender="me", to="oracle"), timeout_s=5)
        inbox = (await caller._ready()).replies._inbox
        assert inbox is not None
        await inbox.outcomes.settling.flushed()
        remembered = inbox.held.remembered
        assert len(remembered._ended) == 0
