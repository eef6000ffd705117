"""An event loop on virtual time: the clock jumps to the next timer as soon as no callback is ready.

There are no sockets, and work for an executor is done at once, in the loop's own thread, so that nothing depends on a
scheduler. Callbacks belong to simulated processes (`process`), which can be stopped, continued and killed as by a
signal.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from hivewire.errors import HivewireError
from hivewire.testing.virtual_waits import WAKE, Handle, Pause, new_handle, process

EPOCH: Final = 1_800_000_000.0
"""The wall clock at the loop's time 0, in seconds since 1970."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Deadlock(HivewireError):
    """Nothing is ready and no timer is set: the tasks named in the text wait for ever."""

    code = "deadlock"


class Livelock(HivewireError):
    """So many callbacks have run that this will surely never end."""

    code = "livelock"


# Numbers as hashes: sets of tasks and futures are then walked in the same order in each run.

_numbers: Final = [0]
"""The last one, of the newest loop."""


class _Future(asyncio.Future[_T]):
    _number = 0

    def __hash__(self) -> int:
        number = self._number
        if not number:  # most are never in a set
            number = self._number = _numbers[0] = _numbers[0] + 1
        return number


class _Task(asyncio.Task[_T]):
    process: str | None
    _number = 0

    def __hash__(self) -> int:
        number = self._number
        if not number:
            number = self._number = _numbers[0] = _numbers[0] + 1
        return number


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `time()` starts at 1000 and moves only when nothing else is left to do."""

    _closed: bool
    _stopping: bool

    def __init__(self, most_steps: int | None = None) -> None:
        super().__init__()
        _numbers[0] = 0
        self._now = 1000.0
        self._calls: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._sequence = 0
        self._tasks: dict[str | None, list[asyncio.Task[Any]]] = {}
        self._prune_at: dict[str | None, int] = {}
        self._stopped: dict[str, deque[Handle]] = {}
        self._thread = threading.get_ident()
        self._threads = 0
        self._rung = threading.Condition()
        self._from_threads: deque[Handle] = deque()
        self._most_steps = most_steps
        self.steps = 0
        """Callbacks that were ready so far: two runs of one seed have the same number."""

    # Time and scheduling

    def time(self) -> float:
        return self._now

    def wall_time(self) -> float:
        """Seconds since 1970, on the virtual clock."""
        return EPOCH + self._now

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = new_handle(Handle)
        handle._callback = callback
        handle._args = args
        handle._context = contextvars.copy_context() if context is None else context
        handle._cancelled = False
        self._calls.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = new_handle(Handle)
        handle._callback = callback
        handle._args = args
        handle._context = contextvars.copy_context() if context is None else context
        handle._cancelled = False
        handle._when = when
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if threading.get_ident() == self._thread:
            return self.call_soon(callback, *args, context=context)
        if not self._threads:
            raise RuntimeError("a thread called into virtual time; wrap its work in loop.with_threads()")
        handle = new_handle(Handle)
        handle._callback = callback
        handle._args = args
        handle._context = contextvars.Context() if context is None else context  # of no process
        handle._cancelled = False
        with self._rung:
            self._from_threads.append(handle)
            self._rung.notify()
        return handle

    @contextmanager
    def with_threads(self) -> Generator[None]:
        """Inside, other threads may call in. While nothing else is ready, the loop waits for them in real
        time instead of moving the clock, so such a run is not the same each time."""
        self._threads += 1
        try:
            yield
        finally:
            self._threads -= 1

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """The work is done at once, in this thread, and takes no virtual time."""
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future

    # Simulated processes

    def stop_process(self, name: str) -> None:
        """As SIGSTOP: from now on nothing of this process runs; what falls due is kept."""
        self._stopped.setdefault(name, deque())

    def continue_process(self, name: str) -> None:
        """As SIGCONT: what fell due meanwhile runs now, in the order in which it fell due."""
        self._calls.extend(self._stopped.pop(name, ()))

    def continue_all(self) -> None:
        """As `continue_process` for each that is stopped."""
        for name in list(self._stopped):
            self.continue_process(name)

    def is_stopped(self, name: str) -> bool:
        return name in self._stopped

    def tasks_of(self, name: str) -> list[asyncio.Task[Any]]:
        """The unfinished tasks of a process, oldest first."""
        self._tasks[name] = [task for task in self._tasks.get(name, ()) if not task.done()]
        return list(self._tasks[name])

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_T]:
        assert isinstance(coro, Coroutine)
        task = _Task(coro, loop=self, name=None if name is None else str(name), context=context)
        owner = task.process = process.get() if context is None else context.get(process)
        tasks = self._tasks.get(owner)  # so that `tasks_of` need not look through the tasks of every loop that ever was
        if tasks is None:
            tasks = self._tasks[owner] = []
        tasks.append(task)
        if len(tasks) > self._prune_at.get(owner, 100):
            left = self._tasks[owner] = [task for task in tasks if not task.done()]
            self._prune_at[owner] = 2 * len(left) + 100
        return task

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Those of all processes, and of none."""
        return [task for tasks in self._tasks.values() for task in tasks if not task.done()]

    def pause(self, delay_s: float) -> Pause:
        """To be awaited at once, by one task: `asyncio.sleep` at a third of its price."""
        return Pause(self, self._now + delay_s)

    # The loop itself

    def _run_once(self) -> None:
        """All turns until it is stopped, and not one: entering each would cost as much as what it does."""
        calls, timers, stopped = self._calls, self._timers, self._stopped
        while True:
            if self._threads or self._from_threads:
                self._take_from_threads()
            if not calls and not self._stopping:
                while timers and timers[0][2]._cancelled:
                    heapq.heappop(timers)
                if not timers:
                    raise Deadlock("nothing is ready and no timer is set; waiting:\n" + self._who_waits())
                self._now = max(self._now, timers[0][0])
            now = self._now
            while timers and timers[0][0] <= now:
                timer = heapq.heappop(timers)[2]
                if timer._callback is WAKE:
                    future, result = timer._args
                    if not future.done():
                        future.set_result(result)  # at once: who waits for it has the only call that is needed
                elif not timer._cancelled:
                    calls.append(timer)
            if self._most_steps is not None and self.steps > self._most_steps:
                self._raise_livelock(self._most_steps)
            self.steps += len(calls)
            for _ in range(len(calls)):
                handle = calls.popleft()
                if stopped and (owner := handle._context.get(process)) in stopped:
                    stopped[owner].append(handle)
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as in asyncio's own loop
                    self.call_exception_handler({"message": f"Exception in {handle!r}", "exception": error})
            if self._stopping:
                return

    def _raise_livelock(self, steps: int) -> None:
        """Name what is ready now. What can be cancelled gets as many steps again."""
        self._most_steps = self.steps + steps
        ready = "\n".join(f"  {handle.owner}: {handle!r}" for handle in list(self._calls)[:20])
        raise Livelock(f"{self.steps} callbacks have run, it is {self._now}; ready:\n{ready}\n{self._who_waits()}")

    def _take_from_threads(self) -> None:
        with self._rung:
            while not self._calls and not self._from_threads and self._threads:
                if not self._rung.wait(10.0):
                    raise Deadlock("for 10 s no thread called in: " + self._who_waits())
            while self._from_threads:
                self._calls.append(self._from_threads.popleft())

    def _who_waits(self) -> str:
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=hash):
            stack = task.get_stack(limit=1)
            where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "?"
            owner = task.process if isinstance(task, _Task) else None
            state = " (stopped)" if owner in self._stopped else ""
            lines.append(f"  {task.get_name()} of {owner}{state} at {where}")
        return "\n".join(lines)

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector here."""

    def _process_events(self, event_list: object) -> None:
        """There are no sockets."""

    def close(self) -> None:
        super().close()
        self._calls.clear()
        self._timers.clear()
        self._stopped.clear()
        self._tasks.clear()


def running_loop() -> VirtualLoop:
    """The virtual loop that runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
