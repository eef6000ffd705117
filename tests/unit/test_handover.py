"""What threads hand to the event loop comes all, in the order of each thread, and none of it is left at the end."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hivewire.handover import Handover


async def made(kind: str, take: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> Handover:
    loop = asyncio.get_running_loop()
    if kind == "no descriptors here":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif kind == "a loop without readers":

        def refuse(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(type(loop), "add_reader", refuse)
    return Handover(loop, take)


KINDS = pytest.mark.parametrize("kind", ["a descriptor", "no descriptors here", "a loop without readers"])


@KINDS
async def test_all_comes_in_the_order_of_each_thread(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[tuple[int, int]] = []
    last = asyncio.Event()

    def take(what: tuple[int, int]) -> None:
        assert threading.current_thread() is threading.main_thread()
        came.append(what)
        if len(came) == 4_000:
            last.set()

    handover = await made(kind, take, monkeypatch)

    def put(thread: int) -> None:
        for number in range(1_000):
            handover.put((thread, number))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(last.wait(), 60)
    handover.close()
    for number in range(4):
        assert [what for what in came if what[0] == number] == [(number, at) for at in range(1_000)]


@KINDS
async def test_what_is_there_at_the_end_is_handed_over_and_the_descriptor_closed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, came = len(os.listdir("/proc/self/fd")), list[int]()
    handover = await made(kind, came.append, monkeypatch)
    handover.put(1)
    handover.put(2)
    assert came == []
    handover.close()
    handover.close()
    assert came == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == before
    await asyncio.sleep(0)
    assert came == [1, 2]


async def test_a_taker_that_fails_takes_the_next_one_all_the_same() -> None:
    came: list[int] = []
    both = asyncio.Event()
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))

    def take(what: int) -> None:
        if what == 1:
            raise ValueError("one is refused")
        came.append(what)
        both.set()

    handover = Handover(asyncio.get_running_loop(), take)
    handover.put(1)
    handover.put(2)
    await asyncio.wait_for(both.wait(), 60)
    handover.close()
    assert came == [2]
    assert len(problems) == 1


def test_a_loop_that_is_closed_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "eventfd", raising=False)
    loop = asyncio.new_event_loop()
    handover = Handover(loop, lambda _: None)
    loop.close()
    handover.put(1)
