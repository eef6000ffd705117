"""A process of a simulation: a connection to the simulated store, and what is done over it, until it is killed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError
from hivewire.protocol import Protocol
from hivewire.settings import Settings
from hivewire.testing.profiles import connect
from hivewire.testing.profiles_faults import Faults, ProcessIsDead, Wire
from hivewire.testing.profiles_world import World
from hivewire.testing.seeded_book import Book, Outage
from hivewire.testing.virtual_loop import VirtualLoop
from hivewire.testing.virtual_waits import process

_REOPEN_S: Final = 0.2
_T = TypeVar("_T")


class Died(Exception):
    """The process was killed while it was at work."""


class Stage:
    """What all seats of one run share."""

    def __init__(self, loop: VirtualLoop, world: World, faults: Faults, chance: Random) -> None:
        self.loop = loop
        self.world = world
        self.faults = faults
        self.chance = chance
        self.book = Book()
        self.context = contextvars.copy_context()
        """That of the driver: nothing in it stands still when a process is stopped."""


class SimulatedProcess:
    """A slot of the program. Processes come and go; the slot stays."""

    def __init__(self, slot: int, stage: Stage, **settings: Any) -> None:
        self.slot = slot
        self.stage = stage
        self.name = ""
        self._settings = settings
        self._lives = 0
        self._engine: Engine | None = None
        self._wire: Wire | None = None
        self._context = stage.context
        self._died: asyncio.Future[None] = stage.loop.create_future()
        self._awaited: dict[asyncio.Future[Any], None] = {}
        """What the driver waits for in the process."""
        self._alive = asyncio.Event()
        self._graves: dict[str, list[asyncio.Task[Any]]] = {}
        """Killed processes, with their tasks: nobody else keeps those alive."""

    def _sit_down(self) -> None:
        """A process has come and is connected."""

    def _killed(self) -> None:
        """The process was killed a moment ago."""

    # Birth and death

    async def open(self) -> None:
        """A new process sits down."""
        self._lives += 1
        self.name = f"m{self.slot}.{self._lives}"
        self._died = self.stage.loop.create_future()
        self._context = self.stage.context.copy()
        self._context.run(process.set, self.name)
        wire = self._wire = Wire(self.stage.faults, self.stage.chance, self.name, self.slot)
        settings = Settings(protocol="inmemory", worker_name=self.name, **self._settings)
        self.stage.book.write(self.stage.loop.time(), "born", self.name)

        async def enter() -> Engine:
            while True:
                # Chance of its own: how often others draw must not change what this one does.
                engine = Engine(settings, connect(self.stage.world, wire), rng=Random(self.name))
                try:
                    return await engine.__aenter__()
                except ProcessIsDead:
                    raise
                except BackendError:
                    await asyncio.sleep(_REOPEN_S)

        try:
            self._engine = await self._in_process(enter)
        except Died:
            return
        self._alive.set()
        self._sit_down()

    def crash(self, length_s: float) -> None:
        """As kill -9; after a while a new process takes the seat."""
        loop, book = self.stage.loop, self.stage.book
        if self._wire is None or self._wire.is_cut:
            return
        book.write(loop.time(), "crash", self.name)
        self._wire.is_cut = True
        self._alive.clear()
        self._graves[self.name] = loop.tasks_of(self.name)
        loop.stop_process(self.name)
        book.outages.append(Outage(self.name, loop.time()))
        self._killed()
        if not self._died.done():
            self._died.set_result(None)
        for ended in self._awaited:
            if not ended.done():
                ended.set_exception(Died(self.name))
        loop.call_later(length_s, self._reborn, context=self.stage.context)

    def _reborn(self) -> None:
        self._birth = self.stage.loop.create_task(self.open())

    def freeze(self, length_s: float) -> None:
        """As SIGSTOP, and SIGCONT after a while."""
        loop = self.stage.loop
        if loop.is_stopped(self.name):
            return
        self.stage.book.write(loop.time(), "freeze", self.name, f"{length_s:.3f}")
        outage = Outage(self.name, loop.time())
        self.stage.book.outages.append(outage)
        loop.stop_process(self.name)
        name = self.name

        def thaw() -> None:
            if name not in self._graves and loop.is_stopped(name):
                self.stage.book.write(loop.time(), "thaw", name)
                outage.ended_at = loop.time()
                loop.continue_process(name)

        loop.call_later(length_s, thaw, context=self.stage.context)

    async def bury(self) -> None:
        """Let the tasks of killed processes end, so that nothing is left of them."""
        for name, tasks in self._graves.items():
            for task in tasks:
                task.cancel()
            self.stage.loop.continue_process(name)
            for _ in range(10):
                left = self.stage.loop.tasks_of(name)
                if not left:
                    break
                await asyncio.wait(left, timeout=30.0)
                for task in self.stage.loop.tasks_of(name):
                    task.cancel()
            else:
                self.stage.book.errors.append(f"tasks of {name} cannot be cancelled: {left}")
        # Most of what they had is gone with the last that names it, and need not wait for the collector.
        self._graves.clear()
        self._engine = self._wire = None
        self._context = self.stage.context

    # Work in the process

    async def _in_process(self, work: Callable[[], Coroutine[Any, Any, _T]], within_s: float | None = None) -> _T:
        loop = self.stage.loop
        ended: asyncio.Future[_T] = loop.create_future()
        self._awaited[ended] = None
        task = loop.create_task(_told(work, ended), context=self._context.copy())
        timer = None if within_s is None else loop.call_later(within_s, _too_late, ended, task)
        try:
            return await ended
        finally:
            self._awaited.pop(ended, None)
            if timer is not None:
                timer.cancel()

    async def do(self, work: Callable[[Protocol], Coroutine[Any, Any, _T]], *, within_s: float | None = None) -> _T:
        """Something for the process that sits here. Raises `Died` if it is killed meanwhile, and `TimeoutError` if it
        takes longer than `within_s`, also in a process that stands still."""
        await self.until_alive()
        assert self._engine is not None
        return await self._in_process(partial(work, self._engine), within_s)

    async def until_alive(self) -> None:
        while not self._alive.is_set():  # who is born may die before those who waited for it go on
            await self._alive.wait()


async def _told(work: Callable[[], Coroutine[Any, Any, _T]], ended: asyncio.Future[_T]) -> None:
    """Do it and tell its end: with a task less to look at than if somebody waited for this one."""
    try:
        result = await work()
    except asyncio.CancelledError:
        ended.cancel()
        raise
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        if not ended.done():
            ended.set_exception(error)
    else:
        if not ended.done():
            ended.set_result(result)


def _too_late(ended: asyncio.Future[Any], task: asyncio.Task[None]) -> None:
    if not ended.done():
        ended.set_exception(TimeoutError())
        task.cancel()


def strike(faults: Faults, seats: Sequence[SimulatedProcess], stage: Stage) -> None:
    """Faults meet these processes, and the store that they share."""

    def freeze(name: str, length_s: float) -> None:
        for seat in seats:
            if seat.name == name:
                seat.freeze(length_s)

    def crash(name: str, length_s: float) -> None:
        for seat in seats:
            if seat.name == name:
                seat.crash(length_s)

    def fail(length_s: float) -> None:
        now = stage.loop.time()
        stage.book.write(now, "fail", f"{length_s:.3f}")
        stage.book.outages.append(Outage("*", now, now + length_s))

    faults.freeze, faults.crash, faults.fail = freeze, crash, fail
