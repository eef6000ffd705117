"""Running workers in this process until a signal says stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from hivewire.coordination.worker import Worker
    from hivewire.protocol import Protocol

log = logging.getLogger(__name__)

CLOSING_S: Final = 5.0
"""After the grace time: to give back what is unfinished and to disconnect."""


class StopSignals:
    """SIGTERM and SIGINT while workers run: the first asks them to stop, the second ends the process.

    What is still running `CLOSING_S` after the grace time (a handler in a thread cannot be cancelled)
    ends with the process, exit code 1; its messages are delivered again elsewhere.
    """

    def __init__(self, grace_s: float, on_stop: Callable[[], object]) -> None:
        self._grace_s = grace_s
        self._on_stop = on_stop
        self._asked = False
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
        if self._asked:
            os.write(2, f"second signal ({name}): ending at once\n".encode())
            os._exit(128 + number)
        self._asked = True
        log.info("%s: taking no more; what runs has %g s to finish", name, self._grace_s)
        end_in(self._grace_s + CLOSING_S)
        self._on_stop()


def end_in(seconds: float) -> None:
    """End this process after so long, whatever it is doing then."""

    def end() -> None:
        os.write(2, b"still running after the grace time: ending; unfinished messages are delivered again\n")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def stop_with_parent(link: socket.socket) -> None:
    """Stop this process when the parent, which holds the other end of `link`, is gone.

    A socket and not PR_SET_PDEATHSIG: it works on every POSIX system, and has no moment at the start
    in which the parent's death goes unnoticed.
    """

    def watch() -> None:
        while link.recv(64):
            pass
        os.write(2, b"the supervisor is gone: stopping\n")
        os.kill(os.getpid(), signal.SIGTERM)

    link.set_inheritable(False)
    threading.Thread(target=watch, name="hivewire-parent", daemon=True).start()


async def serve_until_signal(
    workers: Sequence[Worker], protocol: Protocol, grace_s: float, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve the workers until SIGTERM or SIGINT; then let what runs finish for `grace_s`."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def ask() -> None:
        if not stop.done():
            stop.set_result(None)

    with StopSignals(grace_s, lambda: loop.call_soon_threadsafe(ask)):
        async with protocol:
            on_ready()
            async with asyncio.TaskGroup() as group:
                for worker in workers:
                    group.create_task(worker.serve(protocol, stop=asyncio.shield(stop), drain_s=grace_s))
            await protocol.close(drain_s=0)
