"""Keeps a number of worker processes running, and stops them together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from hivewire.coordination.serving import CLOSING_S, SAME_SIGNAL_S
from hivewire.rules.restart import CrashLoop

log = logging.getLogger(__name__)

READY: Final = b"ready\n"
EXIT_USAGE: Final = 2
_AFTER_CLOSING_S: Final = 2.0


def ended_how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"


def send_signal(child: Process, number: signal.Signals) -> None:
    """Signal a child that may have ended a moment ago.

    `Process.send_signal` would take the exit code away from the event loop, which then reports 255.
    """
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


class Supervisor:
    """Starts `processes` children, each a fresh interpreter, and again when one ends unasked.

    `command(fd)` is the command line of a child; `fd` is its end of a socket. The child writes `READY`
    to it when it serves; when this process dies, however it dies, the child sees it closed and stops.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], processes: int, grace_s: float) -> None:
        self._command = command
        self._processes = processes
        self._grace_s = grace_s
        self._children: set[Process] = set()
        self._stopping = asyncio.Event()
        self._one_was_ready = False
        self._asked_at = 0.0
        self._code = 0

    async def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns 0 when every child then stopped cleanly."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        log.info("supervisor of %d processes", self._processes, extra={"pid": os.getpid()})
        try:
            async with asyncio.TaskGroup() as group:
                for slot in range(1, self._processes + 1):
                    group.create_task(self._keep(slot))
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        log.info("all processes have stopped")
        return self._code

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._stopping.is_set() and now - self._asked_at < SAME_SIGNAL_S:
            return
        if self._stopping.is_set():
            log.warning("second signal (%s): killing %d processes", name, len(self._children))
            self._code = 128 + number
            self._kill_all()
        else:
            self._asked_at = now
            log.info("%s: stopping %d processes within %g s", name, len(self._children), self._grace_s)
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        for child in self._children:
            send_signal(child, signal.SIGTERM)
        patience_s = self._grace_s + CLOSING_S + _AFTER_CLOSING_S
        asyncio.get_running_loop().call_later(patience_s, self._kill_all)

    def _kill_all(self) -> None:
        for child in self._children:
            send_signal(child, signal.SIGKILL)

    async def _keep(self, slot: int) -> None:
        loop_rule = CrashLoop()
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                code = await self._one_life(slot)
            except OSError as error:  # too many processes or files, no memory: that may pass
                log.error("process %d could not be started: %s", slot, error)
                code = 1
            if self._stopping.is_set():
                self._code = self._code or min(abs(code), 1)
                return
            if code == EXIT_USAGE and not self._one_was_ready:
                self._code = EXIT_USAGE  # it has said why; to start it again would say it again
                self._stop()
                return
            pause_s = loop_rule.pause_s(time.monotonic() - started)
            log.warning("process %d %s; starting another in %g s", slot, ended_how(code), pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):  # `wait_for` of Python 3.11 may swallow a cancel
                    await self._stopping.wait()

    async def _one_life(self, slot: int) -> int:
        """Start a child and wait for its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                stdin=DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so that Ctrl-C on the terminal reaches it once: through us
            )
        self._children.add(child)
        log.info("process %d started", slot, extra={"pid": child.pid})
        if self._stopping.is_set():  # the signal came while it was being started
            send_signal(child, signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            is_ready = await reader.readline() == READY
            if is_ready:
                self._one_was_ready = True
                log.info("process %d is ready", slot, extra={"pid": child.pid})
            code = await child.wait()
        finally:
            writer.close()
            self._children.discard(child)
        if self._stopping.is_set():
            log.info("process %d %s", slot, ended_how(code), extra={"pid": child.pid})
            if not is_ready and code == -signal.SIGTERM:
                return 0  # it was still starting and held nothing
        return code
