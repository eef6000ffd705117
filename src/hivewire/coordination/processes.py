"""Handlers that run in processes of their own: for work that keeps a CPU busy.

One message at a time runs in a process. A process that dies fails the attempt that it ran and no other; a handler
that is cancelled, or takes too long, ends with its process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import msgspec

from hivewire.coordination.calling import THREADS
from hivewire.coordination.pipes import Pipe
from hivewire.coordination.stopping import TooLate
from hivewire.errors import HivewireError, Reject, RetryAfter, SettingsError, told
from hivewire.message import Message

_END_S: Final = 2.0
_STEP_S: Final = 0.001
_spawn = multiprocessing.get_context("spawn")


class ProcessDied(HivewireError):
    """The process that ran a handler ended before the handler did."""

    code = "process_died"


class RemoteError(Exception):
    """What a handler raised in its process, where the exception itself cannot be sent."""


class ProcessContext(msgspec.Struct, frozen=True):
    """What a handler in a process of its own knows beside the message. It can return, raise, `Reject` and
    `RetryAfter`; sending is for handlers on the event loop or in a thread."""

    attempt: int


Call = tuple[Callable[[Message, ProcessContext], Any], Message, int, float]


def check(name: str, handler: Callable[..., Any]) -> None:
    """Raise `SettingsError` if the function cannot be named from another process."""
    try:
        pickle.dumps(handler)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"worker {name}: {handler!r} cannot run in a process of its own; it must be a function at the top of a "
            f"module ({error})"
        ) from None


class Pool:
    """At most `size` processes, started when they are needed and kept for the next message."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._idle: list[_Child] = []
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=f"{THREADS}{name}-process")
        """Each waits for one process."""

    async def run(self, handler: Callable[..., Any], message: Message, attempt: int, start_by: float = inf) -> Any:
        """What the handler returns or raises; `ProcessDied` when its process did not live to say; `TooLate` when it
        had not begun by then (of `time.monotonic`, which all processes of a machine share)."""
        loop = asyncio.get_running_loop()
        child = self._free()
        try:
            answer = await loop.run_in_executor(self._threads, child.ask, (handler, message, attempt, start_by))
        except BaseException:
            child.kill()
            raise
        self._idle.append(child)
        return _opened(answer)

    def _free(self) -> _Child:
        """One that lives: the death of one that was idle is no failed attempt of anybody."""
        while self._idle:
            child = self._idle.pop()
            if child.is_alive():
                return child
            child.kill()
        return _Child(self._name)

    def close(self) -> None:
        """End all that is idle; what runs was cancelled before, and ended with that."""
        for child in self._idle:
            child.kill()
        self._idle.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Child:
    """One process and the pipe to it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._process: Any = None
        self._pipe: Pipe | None = None
        self._killed = False
        self._asking = False

    def ask(self, call: Call) -> tuple[str, Any]:
        """In a thread. Raises `ProcessDied`."""
        with self._lock:
            if self._killed:
                raise ProcessDied("it was cancelled before it began")
            if self._process is None:
                self._start()
            self._asking = True
        assert self._pipe is not None
        try:
            self._pipe.send(pickle.dumps(call))
            raw = self._pipe.receive()
        except (EOFError, OSError) as error:
            self._process.join(_END_S)
            raise ProcessDied(f"its process ended with {_ending(self._process.exitcode)}") from error
        finally:
            self._asked(self._pipe)
        try:
            answer: tuple[str, Any] = pickle.loads(raw)  # of our own child
        except Exception as error:  # noqa: BLE001  # its classes may raise anything
            answer = _no_answer(error)
        return answer

    def is_alive(self) -> bool:
        return self._process is not None and bool(self._process.is_alive())

    def _asked(self, pipe: Pipe) -> None:
        with self._lock:
            self._asking = False
            if self._killed:
                pipe.close()

    def _start(self) -> None:
        ours, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(theirs,), name=f"hivewire-{self._name}", daemon=True)
        self._process.start()
        theirs.close()
        self._pipe = Pipe(ours, self.is_alive)

    def kill(self) -> None:
        """At once, whatever it does; a thread that waits for it is told by the end of the pipe."""
        with self._lock:
            self._killed = True
            if self._process is not None and self._process.is_alive():
                self._process.kill()
                _see_off(self._process)
            if self._pipe is not None and not self._asking:  # a number that is read from may not become another's
                self._pipe.close()


def _see_off(process: Any) -> None:
    """Until it has ended: at once after a kill. `join` waits for what it has forked, too."""
    give_up = time.monotonic() + _END_S
    while process.is_alive() and time.monotonic() < give_up:
        time.sleep(_STEP_S)


def _ending(exitcode: int | None) -> str:
    if exitcode is None:
        return "no word"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:  # a real-time signal has no name
        return f"signal {-exitcode}"


def _no_answer(error: Exception) -> tuple[str, str]:
    """The work would be done at each attempt, and end here all the same."""
    return "reject", f"the handler's result cannot be pickled: {told(error)}"


def _opened(answer: tuple[str, Any]) -> Any:
    kind, value = answer
    if kind == "result":
        return value
    if kind == "late":
        raise TooLate
    if kind == "reject":
        raise Reject(value)
    if kind == "retry_after":
        raise RetryAfter(*value)
    pickled, text, trace = value
    error: BaseException = RemoteError(text)
    if pickled is not None:
        with suppress(Exception):  # its class may not be the same here
            error = pickle.loads(pickled)  # of our own child
    error.add_note(trace)
    raise error


# -- in the child


def _serve(connection: Connection) -> None:
    own, pipe = os.getpid(), Pipe(connection, lambda: True)  # a parent's death ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            raw = pipe.receive()
        except (EOFError, OSError):
            return
        answer = _answer(raw)
        if os.getpid() != own:
            os._exit(0)  # forked by the handler, and back from it: the answer is the other one's to give
        pipe.send(answer)


def _end_with_parent() -> None:
    """A handler that is busy must not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _answer(raw: bytes) -> bytes:
    try:
        handler, message, attempt, start_by = pickle.loads(raw)  # of our own parent
        if time.monotonic() > start_by:
            return pickle.dumps(("late", None))
        result = handler(message, ProcessContext(attempt))
        try:
            return pickle.dumps(("result", result))
        except Exception as error:  # noqa: BLE001  # a result may hold anything
            return pickle.dumps(_no_answer(error))
    except Reject as error:
        return pickle.dumps(("reject", error.reason))
    except RetryAfter as error:
        return pickle.dumps(("retry_after", (error.delay_s, str(error))))
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the handler's answer
        trace = "".join(traceback.format_exception(error))
        return pickle.dumps(("error", (_pickled(error), told(error), trace)))


def _pickled(error: BaseException) -> bytes | None:
    try:
        raw = pickle.dumps(error)
        pickle.loads(raw)  # one that cannot be read again is as good as none
    except Exception:  # noqa: BLE001  # an exception may hold anything
        return None
    return raw
