"""What is wrong with a worker is said to who wrote it, and not to every message that it gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any

import pytest

import hivewire as hw
from hivewire.coordination.effects import LedgerEffects
from hivewire.coordination.worker import check_together
from hivewire.errors import SettingsError


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"concurrency": "8"},
        {"concurrency": True},
        {"mode": "compete"},
        {"capabilities": "coding"},
        {"capabilities": [5]},
        {"capabilities": None},
        {"groups": "all"},
    ],
    ids=str,
)
def test_a_worker_that_could_not_work_is_not_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(hw.SettingsError, match="worker coder: "):
        hw.Worker("coder", **wrong)


def test_capabilities_may_be_a_set() -> None:
    assert hw.Worker("coder", capabilities={"coding"}).capabilities == ("coding",)  # type: ignore[arg-type]  # it works


@pytest.mark.parametrize(
    "wrong",
    [{"type": ""}, {"type": "\n"}, {"type": 5}, {"retry": 3}, {"timeout_s": -1}, {"timeout_s": 0}, {"timeout_s": "9s"}],
    ids=str,
)
def test_a_handler_is_registered_with_what_it_can_have(wrong: dict[str, Any]) -> None:
    with pytest.raises(hw.SettingsError, match="worker coder"):
        hw.Worker("coder").on(**wrong)


def test_a_handler_is_never_registered_by_a_decorator_without_parentheses() -> None:
    coder = hw.Worker("coder")
    with pytest.raises(hw.SettingsError, match=r"\.on\(\"TYPE\"\)"):

        @coder.on  # type: ignore[arg-type]  # on purpose
        async def write(task: hw.Message, ctx: hw.Context) -> None: ...


def test_a_handler_takes_a_message_and_a_context() -> None:
    coder = hw.Worker("coder")

    async def one(task: hw.Message) -> None: ...

    def three(task: hw.Message, ctx: hw.Context, more: int) -> None: ...

    def some(task: hw.Message, *rest: object, more: int = 0) -> None: ...

    for wrong in (one, three):
        with pytest.raises(hw.SettingsError, match="the handler for 'task' takes the message and a context"):
            coder.on("task")(wrong)  # type: ignore[type-var]  # on purpose

    @wraps(three)
    def decorated(*args: Any) -> None:
        return three(args[0], args[1], 1)

    coder.on("task")(some)
    coder.on("other")(max)
    coder.on("decorated")(decorated)


@pytest.mark.parametrize(
    ("handler", "takes_two"),
    [
        (lambda: None, False),
        (lambda a: None, False),
        (lambda a, b: None, True),
        (lambda a, b=1: None, True),
        (lambda a=1, b=2, c=3: None, True),
        (lambda a, b, c: None, False),
        (lambda a, b, c, d=4: None, False),
        (lambda *all: None, True),
        (lambda a, b, c, *rest: None, False),
        (lambda a, b, *, c: None, False),
        (lambda a, b, *, c=3, **more: None, True),
        (lambda a, b, /, c=3: None, True),
    ],
    ids=map(str, range(12)),
)
def test_what_takes_two_is_a_handler(handler: Any, takes_two: bool) -> None:
    if takes_two:
        hw.Worker("coder").on("task")(handler)
    else:
        with pytest.raises(hw.SettingsError, match="takes the message and a context"):
            hw.Worker("coder").on("task")(handler)


def test_a_function_that_yields_would_never_run_and_is_no_handler() -> None:
    coder = hw.Worker("coder")

    def plain(task: hw.Message, ctx: hw.Context) -> Iterator[int]:
        yield 1

    async def on_the_loop(task: hw.Message, ctx: hw.Context) -> AsyncIterator[int]:
        yield 1

    for number, handler in enumerate((plain, on_the_loop)):
        with pytest.raises(hw.SettingsError, match="yield"):
            coder.on(f"task-{number}")(handler)
    assert coder.types == ()


@pytest.mark.parametrize(
    "workers",
    [(), (5,), ([hw.Worker("coder")],), (hw.Worker("coder"),)],
    ids=["nobody", "number", "list", "without-handlers"],
)
def test_what_cannot_be_run_is_said_at_once(workers: tuple[Any, ...]) -> None:
    with pytest.raises(hw.SettingsError):
        hw.run(*workers)


@pytest.mark.parametrize("grace_s", ["10s", -1, None], ids=str)
def test_a_grace_time_that_is_none_is_no_surprise_for_a_signal(grace_s: Any) -> None:
    """The process could not be stopped by it."""
    coder = hw.Worker("coder")
    coder.on("task")(lambda task, ctx: None)
    with pytest.raises(hw.SettingsError, match="grace_s"):
        hw.run(coder, grace_s=grace_s)


def test_workers_run_in_the_main_thread() -> None:
    coder = hw.Worker("coder")
    coder.on("task")(lambda task, ctx: None)
    with ThreadPoolExecutor(1) as pool, pytest.raises(hw.SettingsError, match="main thread"):
        pool.submit(hw.run, coder).result()


async def test_workers_are_not_run_inside_of_a_loop() -> None:
    coder = hw.Worker("coder")
    coder.on()(max)
    with pytest.raises(hw.SettingsError, match=r"await Worker\.serve\(protocol\)"):
        hw.run(coder, target="memory://")


def test_one_process_serves_no_two_workers_of_one_name() -> None:
    coder, other, second = hw.Worker("coder"), hw.Worker("other"), hw.Worker("coder")
    check_together([coder, other])
    for together in ([coder, other, second], [coder, coder]):
        with pytest.raises(hw.SettingsError, match="two workers are named coder"):
            check_together(together)


@pytest.mark.parametrize(
    "wrong", [{"ledger": "sqlite:///tasks.db"}, {"lease_s": 0}, {"lease_s": float("nan")}], ids=str
)
def test_effects_are_kept_in_a_ledger_and_under_a_lease(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="effects"):
        LedgerEffects(**{"ledger": hw.open_ledger("memory://"), **wrong})
