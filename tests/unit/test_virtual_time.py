"""Virtual time: jumps, deadlocks, simulated processes, and runs that always go the same way."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from hivewire.ids import new_id
from hivewire.testing.virtual_loop import EPOCH, Deadlock, VirtualLoop
from hivewire.testing.virtual_time import run_virtual, seeded_ids, virtual
from hivewire.testing.virtual_waits import process


def the_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def spawn(name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    context = contextvars.copy_context()
    context.run(process.set, name)
    return the_loop().create_task(work, context=context)


@virtual
async def test_a_day_passes_at_once() -> None:
    real, start = time.monotonic(), the_loop().time()
    await asyncio.sleep(86_400)
    assert the_loop().time() == start + 86_400
    assert the_loop().wall_time() == EPOCH + start + 86_400
    assert time.monotonic() - real < 5


@virtual
async def test_timers_of_one_moment_run_in_the_order_they_were_set() -> None:
    seen: list[int] = []
    when = the_loop().time() + 1
    for number in range(50):
        the_loop().call_at(when, seen.append, number)
    await asyncio.sleep(1)
    assert seen == list(range(50))


def test_a_deadlock_names_who_waits() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"test_virtual_time\.py"):
        run_virtual(wait_for_ever())


@virtual
async def test_a_stopped_process_runs_nothing_and_catches_up_when_continued() -> None:
    seen: list[tuple[str, float]] = []

    async def tick(name: str) -> None:
        for _ in range(4):
            await asyncio.sleep(1)
            seen.append((name, the_loop().time()))

    start = the_loop().time()
    tasks = [spawn("a", tick("a")), spawn("b", tick("b"))]
    await asyncio.sleep(1.5)
    the_loop().stop_process("a")
    await asyncio.sleep(5)
    assert [when - start for name, when in seen if name == "a"] == [1]
    assert [when - start for name, when in seen if name == "b"] == [1, 2, 3, 4]
    the_loop().continue_process("a")
    await asyncio.gather(*tasks)
    assert [when - start for name, when in seen if name == "a"] == [1, 6.5, 7.5, 8.5]


@virtual
async def test_tasks_of_a_process_are_found_and_can_be_cancelled_while_it_is_stopped() -> None:
    task = spawn("a", asyncio.sleep(100))
    await asyncio.sleep(1)
    the_loop().stop_process("a")
    assert the_loop().tasks_of("a") == [task]
    task.cancel()
    await asyncio.sleep(1)
    assert not task.done()
    the_loop().continue_process("a")
    with pytest.raises(asyncio.CancelledError):
        await task


@virtual
async def test_work_for_an_executor_is_done_at_once() -> None:
    assert await asyncio.to_thread(threading.get_ident) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await asyncio.get_running_loop().run_in_executor(None, lambda: 1 // 0)


@virtual
async def test_a_thread_may_call_in_only_when_it_was_announced() -> None:
    loop, done = the_loop(), asyncio.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert len(errors) == 1
    with loop.with_threads():
        thread = threading.Thread(target=call)
        thread.start()
        await done.wait()
        thread.join()


def test_sets_of_tasks_are_walked_in_the_same_order_in_each_run() -> None:
    async def walk() -> list[int]:
        order: list[int] = []
        tasks = {asyncio.create_task(asyncio.sleep(1, number)) for number in range(40)}
        done, _ = await asyncio.wait(tasks)
        order.extend(task.result() for task in done)
        return order

    assert sorted(run_virtual(walk())) == list(range(40))


def test_ids_follow_the_seed() -> None:
    with seeded_ids(5):
        first = [new_id() for _ in range(3)]
    between = new_id()
    with seeded_ids(5):
        assert [new_id() for _ in range(3)] == first
    assert between not in first
    assert new_id() > between


@virtual
async def test_a_pause_ends_at_its_time_and_can_be_cancelled() -> None:
    loop = the_loop()
    before = loop.time()

    async def paused() -> float:
        await loop.pause(5.0)
        return loop.time() - before

    one, other, at_once = (asyncio.create_task(paused()) for _ in range(3))
    at_once.cancel()
    await asyncio.sleep(1.0)
    other.cancel()
    await asyncio.wait([other, at_once])
    assert other.cancelled()
    assert at_once.cancelled()
    assert loop.time() - before == 1.0
    assert await one == 5.0
    one.cancel()  # too late
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await loop.pause(2.0)
    assert loop.time() - before == 6.0


@virtual
async def test_a_pause_of_a_stopped_process_ends_when_it_goes_on() -> None:
    loop = the_loop()
    before = loop.time()

    async def paused() -> float:
        await loop.pause(1.0)
        return loop.time() - before

    task = spawn("p", paused())
    await asyncio.sleep(0.5)
    loop.stop_process("p")
    await asyncio.sleep(3.0)
    assert not task.done()
    loop.continue_process("p")
    assert await task == 3.5
