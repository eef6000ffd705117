"""Stopping subtasks that are with a worker, or in its queue.

What is stopped stands in small shared values of the protocol: one for each run that has something stopped, written
first, and one whose version rises with each stop. A worker that knows a run's marks, and that the version is still the
same, knows that nothing of it was stopped meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import inf
from typing import Any, Final

import msgspec

from hivewire.coordination.exits import carried, told
from hivewire.errors import BackendError, HivewireError
from hivewire.protocol import Protocol
from hivewire.rules.stops import PERMIT_S, Marks, Permit

log = logging.getLogger(__name__)

_EPOCH: Final = "stops"
_KEEP_S: Final = 7 * 86_400.0
"""A message that waits for longer than this in a queue is begun though its run was stopped; its result is ignored."""
_LOOK_S: Final = PERMIT_S / 2
_PAUSE_S: Final = 0.1
_KEPT: Final = 500


class Stopped(HivewireError):
    """The run was cancelled, or does not want this subtask any more."""

    code = "stopped"


class TooLate(Exception):
    """The time to begin was over before the handler was reached: ask anew."""


async def stop(protocol: Protocol, run: str, messages: Sequence[str] = ()) -> None:
    """Stop the subtasks with these messages, or all of the run. What has not begun within `PERMIT_S` from when this
    returns never will; handlers that run are cancelled within a second."""
    name = _name(run)
    while True:
        value = await protocol.value(name)
        wanted = _marks(value.data).with_stop(messages)
        stored = await protocol.set_value(name, msgspec.json.encode(wanted), value.version, ttl_s=_KEEP_S)
        if stored is not None:
            break
    # Who is faster here has read the version before, so that the rise tells of this stop, too.
    epoch = await protocol.value(_EPOCH)
    await protocol.set_value(_EPOCH, b"", epoch.version)


def _name(run: str) -> str:
    return f"stops/{run}"


def _marks(data: bytes) -> Marks:
    return msgspec.json.decode(data, type=Marks) if data else Marks()


class Stops:
    """One worker's side: nothing that was stopped is begun, and what runs is cancelled."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        loop = asyncio.get_running_loop()
        self._is_virtual = hasattr(loop, "wall_time")
        self._clock = loop.time if self._is_virtual else time.monotonic
        self._permits: OrderedDict[str, Permit] = OrderedDict()
        self._epoch = -1
        self._asked_at = -inf
        self._asking = asyncio.Lock()
        self._running: dict[asyncio.Task[Any], tuple[str, str]] = {}
        self._stopped: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None

    async def guard(self, run: str, message_id: str, work: Callable[[float], Awaitable[Any]]) -> Any:
        """What `work` returns. It is given the time (of `time.monotonic`) up to which it may begin, and raises
        `TooLate` where it did not. Raises `Stopped` when the subtask is not wanted, before `work` or in the middle."""
        task = asyncio.ensure_future(carried(partial(self._permitted, run, message_id, work)))
        self._running[task] = (run, message_id)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="hivewire-stops")
        try:
            await _ended(task)
        finally:
            del self._running[task]
            was_stopped = task in self._stopped
            self._stopped.discard(task)
        if was_stopped:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("a subtask ended otherwise than asked", extra={"id": message_id, "error": repr(error)})
            raise Stopped(f"subtask {message_id} of run {run} was stopped")
        with told():
            return task.result()

    async def close(self) -> None:
        """End the watching; what is guarded must have ended."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _permitted(self, run: str, message_id: str, work: Callable[[float], Awaitable[Any]]) -> Any:
        while True:
            start_by = await self._permit(run, message_id)
            try:
                return await work(inf if self._is_virtual else start_by)
            except TooLate:
                continue

    async def _permit(self, run: str, message_id: str) -> float:
        """Until when this subtask may begin; that is not over yet."""
        while True:
            permit = self._permits.get(run)
            if permit is not None and permit.marks.stops(message_id):
                raise Stopped(f"subtask {message_id} of run {run} was stopped before it began")
            start_by = self._start_by(run)
            if self._clock() < start_by:
                return start_by
            try:
                await self._ask(run)
            except BackendError as error:
                log.info("cannot see yet whether a subtask is wanted", extra={"id": message_id, "error": str(error)})
                await asyncio.sleep(_PAUSE_S)

    def _start_by(self, run: str) -> float:
        permit = self._permits.get(run)
        return -inf if permit is None else permit.start_by(self._epoch, self._asked_at)

    async def _ask(self, run: str) -> None:
        """One asks for all that wait."""
        async with self._asking:
            if self._clock() < self._start_by(run):
                return
            await self._ask_epoch()
            permit = self._permits.get(run)
            if permit is None or permit.epoch != self._epoch:
                await self._ask_marks(run)

    async def _ask_epoch(self) -> None:
        asked_at = self._clock()
        self._epoch = (await self._protocol.value(_EPOCH)).version
        self._asked_at = asked_at

    async def _ask_marks(self, run: str) -> None:
        """After the epoch: marks are written before it rises."""
        epoch, asked_at = self._epoch, self._clock()
        marks = _marks((await self._protocol.value(_name(run))).data)
        self._permits[run] = Permit(epoch, asked_at, marks)
        self._permits.move_to_end(run)
        while len(self._permits) > _KEPT:
            self._permits.popitem(last=False)

    async def _watch(self) -> None:
        """While something runs: look for stops."""
        while self._running:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._look()
            except BackendError as error:
                log.info("cannot see whether subtasks are still wanted", extra={"error": str(error)})

    async def _look(self) -> None:
        async with self._asking:
            await self._ask_epoch()
            for run in {run for run, _ in self._running.values()}:
                if (permit := self._permits.get(run)) is None or permit.epoch != self._epoch:
                    await self._ask_marks(run)
        for task, (run, message_id) in list(self._running.items()):
            if run in self._permits and self._permits[run].marks.stops(message_id) and task not in self._stopped:
                log.info("a subtask is stopped", extra={"run": run, "id": message_id})
                self._stopped.add(task)
                task.cancel()


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for its end. Who is cancelled meanwhile cancels it, and waits for its end all the same."""
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
            task.cancel()
    if is_cancelled:
        if not task.cancelled():
            task.exception()  # it is told by nobody else, and must not be told by the loop
        raise asyncio.CancelledError
