"""Handlers at the top of a module, as users write them; they run in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import hivewire as hw
from hivewire.coordination.processes import ProcessContext


class Odd(Exception):
    """Cannot be pickled back: its `__init__` wants more than its text."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def _fail() -> None:
    raise EOFError("not to be read")


def _die_in_the_middle_of_the_answer() -> None:
    write = os.write

    def some(number: int, piece: Any) -> int:
        if len(piece) < 1_000:
            return write(number, piece)
        write(number, piece[:1_000])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = some


class Unreadable:
    """Can be pickled, and not be read again."""

    def __reduce__(self) -> Any:
        return _fail, ()


def work(message: hw.Message, ctx: ProcessContext) -> Any:
    content = message.content
    match content["do"]:
        case "pid":
            return os.getpid()
        case "die" if ctx.attempt <= content["last"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case "fork" if ctx.attempt <= content["last"]:
            dies = os.getpid()
            if not os.fork():
                os.kill(dies, signal.SIGKILL)
                time.sleep(content["s"])
                os._exit(0)
            time.sleep(content["s"])
        case "half" if ctx.attempt <= content["last"]:
            if not os.fork():
                time.sleep(content["s"])
                os._exit(0)
            _die_in_the_middle_of_the_answer()
            return "x" * content["n"]
        case "fork and wait":
            os.fork()
            with open(content["note"], "a") as file:
                file.write("here\n")
            time.sleep(content["s"])
            os._exit(0)
        case "both":
            return "parent" if os.fork() else "child"
        case "unreadable":
            return Unreadable()
        case "exit" if ctx.attempt <= content["last"]:
            os._exit(7)
        case "end" if ctx.attempt <= content["last"]:
            os.kill(os.getpid(), signal.SIGRTMIN + 6)
        case "raise":
            raise ValueError(f"attempt {ctx.attempt}")
        case "odd":
            raise Odd(1, 2)
        case "reject":
            raise hw.Reject("not mine")
        case "retry" if ctx.attempt == 1:
            raise hw.RetryAfter(0.05, "once more")
        case "burn":
            until = time.monotonic() + content["s"]
            with open(content["note"], "a") as file:
                file.write(f"{os.getpid()}\n")
            while time.monotonic() < until:
                pass
        case "large":
            return "x" * content["n"]
        case "unsendable":
            return lambda: None
    return ctx.attempt


async def coroutine(message: hw.Message, ctx: ProcessContext) -> None:
    """Not for a process."""
