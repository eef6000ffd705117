"""A worker's knowledge of what is not wanted any more, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hivewire as hw
from hivewire.coordination.stopping import Stopped, Stops, TooLate, stop
from hivewire.errors import ConnectionLost
from hivewire.rules.stops import PERMIT_S, Marks, Permit
from hivewire.testing.virtual_time import virtual


@asynccontextmanager
async def stage() -> AsyncIterator[tuple[hw.Protocol, Stops]]:
    async with hw.connect(f"memory://{uuid4().hex}") as protocol:
        stops = Stops(protocol)
        try:
            yield protocol, stops
        finally:
            await stops.close()


async def forever(start_by: float) -> None:
    await asyncio.sleep(10_000)


async def at_once(start_by: float) -> str:
    return "done"


@virtual
async def test_what_runs_is_cancelled_though_another_subtask_has_seen_the_stop_first() -> None:
    async with stage() as (protocol, stops):
        running = asyncio.create_task(stops.guard("r", "m1", forever))
        await asyncio.sleep(1.1)  # between two looks of the watcher
        await stop(protocol, "r")
        assert await stops.guard("another run", "m2", at_once) == "done"
        async with asyncio.timeout(1):
            with pytest.raises(Stopped):
                await running


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
async def test_who_exits_ends_its_own_subtask_and_not_the_process(error: BaseException) -> None:
    async def leave(start_by: float) -> None:
        raise error

    async with stage() as (_, stops):
        beside = asyncio.create_task(stops.guard("r", "m1", forever))
        with pytest.raises(type(error)) as raised:
            await stops.guard("r", "m2", leave)
        assert raised.value is error
        assert not beside.done()
        beside.cancel()
        await asyncio.wait([beside])


@virtual
async def test_one_message_is_stopped_and_its_run_goes_on() -> None:
    async with stage() as (protocol, stops):
        running = [asyncio.create_task(stops.guard("r", name, forever)) for name in ("m1", "m2")]
        await asyncio.sleep(1)
        await stop(protocol, "r", ["m1", "m3"])
        with pytest.raises(Stopped):
            await stops.guard("r", "m3", at_once)
        assert await stops.guard("r", "m4", at_once) == "done"
        await asyncio.sleep(1)
        assert [task.done() for task in running] == [True, False]
        await stop(protocol, "r")
        await asyncio.wait(running, timeout=1)
        assert all(isinstance(task.exception(), Stopped) for task in running)


@virtual
async def test_stops_of_many_at_once_are_all_seen() -> None:
    async with stage() as (protocol, stops):
        names = [f"m{n}" for n in range(20)]
        running = [asyncio.create_task(stops.guard("r", name, forever)) for name in names]
        await asyncio.sleep(1)
        await asyncio.gather(*(stop(protocol, "r", [name]) for name in names))
        await asyncio.wait(running, timeout=1)
        assert all(isinstance(task.exception(), Stopped) for task in running)


@virtual
async def test_many_starts_cost_few_reads() -> None:
    async with stage() as (protocol, stops):
        asked: list[str] = []
        value: Any = protocol.value

        async def counting(name: str) -> Any:
            asked.append(name)
            return await value(name)

        protocol.value = counting  # type: ignore[method-assign]
        await asyncio.gather(*(stops.guard("r", f"m{n}", at_once) for n in range(1_000)))
        assert asked == ["stops", "stops/r"]


@virtual
async def test_a_start_that_came_too_late_asks_anew_and_a_store_that_is_away_is_waited_for() -> None:
    async with stage() as (protocol, stops):
        tries: list[int] = []
        value: Any = protocol.value

        async def away(name: str) -> Any:
            tries.append(1)
            if len(tries) < 5:
                raise ConnectionLost("away")
            return await value(name)

        async def late_twice(start_by: float) -> str:
            tries.append(0)
            if tries.count(0) < 3:
                raise TooLate
            return "done"

        protocol.value = away  # type: ignore[method-assign]
        assert await stops.guard("r", "m", late_twice) == "done"


@virtual
async def test_a_caller_that_is_cancelled_ends_its_work_and_a_stubborn_one_is_waited_for() -> None:
    ended: list[str] = []

    async def stubborn(start_by: float) -> None:
        for name in ("first", "second"):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                ended.append(name)
        raise ValueError("at last")

    async with stage() as (_, stops):
        running = asyncio.create_task(stops.guard("r", "m", stubborn))
        await asyncio.sleep(1)
        running.cancel()
        await asyncio.sleep(1)
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert ended == ["first", "second"]


@given(st.lists(st.sets(st.sampled_from("abc"))), st.sampled_from("abc"))
def test_marks_are_the_sum_of_all_stops(stops: list[set[str]], name: str) -> None:
    marks = Marks()
    for each in stops:
        marks = marks.with_stop(each)
    assert marks.stops(name) == any(not each or name in each for each in stops)


@given(st.integers(0, 3), st.integers(0, 3), st.floats(0, 10), st.floats(0, 10))
def test_a_permit_lasts_from_asking_while_nothing_was_stopped(
    epoch: int, seen: int, asked_at: float, epoch_asked_at: float
) -> None:
    start_by = Permit(epoch, asked_at, Marks()).start_by(seen, epoch_asked_at)
    if epoch != seen:
        assert start_by < 0
    else:
        assert start_by == max(asked_at, epoch_asked_at) + PERMIT_S


def test_a_permit_lasts_half_a_second() -> None:
    """Workers of every version must agree on it."""
    assert Permit(1, 10.0, Marks()).start_by(1, 9.0) == 10.5
