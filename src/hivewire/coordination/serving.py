"""Running workers in this process until a signal says stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Self

from hivewire.coordination.calling import THREADS
from hivewire.coordination.team import announced

if TYPE_CHECKING:
    from hivewire.coordination.worker import Worker
    from hivewire.protocol import Protocol

log = logging.getLogger(__name__)

CLOSING_S: Final = 5.0
"""After the grace time: to give back what is unfinished and to disconnect."""
SAME_SIGNAL_S: Final = 0.2
"""Signals this close together are one: `timeout`, `make` and terminals send to the process and to its group."""
_THREAD_S: Final = 0.5
"""An idle thread ends at once when its pool is closed."""


class StopSignals:
    """SIGTERM and SIGINT while workers run: the first asks them to stop, the second ends the process.

    A process under a supervisor does not count (`second_ends` False): a service manager signals every process
    of the service, and so does the supervisor, which kills when it is asked twice.

    What is still running `CLOSING_S` after the grace time (a handler in a thread cannot be cancelled)
    ends with the process, exit code 1; its messages are delivered again elsewhere.
    """

    def __init__(self, grace_s: float, on_stop: Callable[[], object], *, second_ends: bool = True) -> None:
        self._grace_s = grace_s
        self._on_stop = on_stop
        self._second_ends = second_ends
        self._asked_at: float | None = None
        self._end: threading.Timer | None = None
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def __enter__(self) -> Self:
        for number in self._before:
            signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._asked_at is not None:
            if self._second_ends and now - self._asked_at >= SAME_SIGNAL_S:
                os.write(2, f"second signal ({name}): ending at once\n".encode())
                os._exit(128 + number)
            return
        self._asked_at = now
        log.info("%s: taking no more; what runs has %g s to finish", name, self._grace_s)
        self._end = end_in(self._grace_s + CLOSING_S)
        self._on_stop()

    def call_off(self) -> None:
        """All has stopped: the process need not end, it may be a program with more to do. A handler's thread that
        still runs would keep it from ending, so then it is ended all the same."""
        for thread in threading.enumerate():
            if thread.name.startswith(THREADS) and not thread.daemon:
                thread.join(_THREAD_S)
                if thread.is_alive():
                    return
        if self._end is not None:
            self._end.cancel()


def end_in(seconds: float) -> threading.Timer:
    """End this process after so long, whatever it is doing then."""

    def end() -> None:
        os.write(2, b"still running after the grace time: ending; unfinished messages are delivered again\n")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def stop_with_parent(link: socket.socket) -> None:
    """Stop this process when the parent, which holds the other end of `link`, is gone.

    A socket and not PR_SET_PDEATHSIG: it works on every POSIX system, and has no moment at the start
    in which the parent's death goes unnoticed.
    """

    def watch() -> None:
        try:
            with suppress(ConnectionError):  # a parent that is killed before it has read all resets the link
                while link.recv(64):
                    pass
            os.write(2, b"the supervisor is gone: stopping\n")
        finally:  # also when stderr is gone with the parent
            os.kill(os.getpid(), signal.SIGTERM)

    link.set_inheritable(False)
    threading.Thread(target=watch, name="hivewire-parent", daemon=True).start()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def run_until_signal(
    workers: Sequence[Worker],
    connect: Callable[[], Protocol],
    grace_s: float,
    *,
    on_ready: Callable[[], None] = lambda: None,
    second_ends: bool = True,
) -> None:
    """Serve the workers in a loop of their own until SIGTERM or SIGINT, then let what runs finish for `grace_s`. Call
    from the main thread."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        loop = runner.get_loop()
        stop = loop.create_future()

        def ask() -> None:
            if not stop.done():
                stop.set_result(None)

        with StopSignals(grace_s, lambda: loop.call_soon_threadsafe(ask), second_ends=second_ends) as signals:
            runner.run(_serve(workers, connect(), stop, grace_s, on_ready))
    signals.call_off()


async def _serve(
    workers: Sequence[Worker],
    protocol: Protocol,
    stop: asyncio.Future[None],
    grace_s: float,
    on_ready: Callable[[], None],
) -> None:
    found = [worker for worker in workers if worker.capabilities]
    async with protocol:
        async with announced(protocol, found) if found else nullcontext(), asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.serve(protocol, stop=asyncio.shield(stop), drain_s=grace_s))
            on_ready()
        await protocol.close(drain_s=0)
