"""Workers that a test can kill, freeze and stop: processes, or members inside the test's own loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

import msgspec

from hivewire.engine.protocol import Engine
from hivewire.testing.conformance.journal import Journal
from hivewire.testing.conformance.obey import Obedient
from hivewire.testing.conformance.programs import Spec, run_program
from hivewire.testing.conformance.waiting import until


class Worker(ABC):
    """One member that consumes or sends as its `Spec` says."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = spec.name

    @property
    @abstractmethod
    def gone(self) -> bool:
        """It has ended, however."""

    @abstractmethod
    def kill(self) -> None:
        """End at once: nothing is settled, nothing is said to the store."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask for a clean stop, as SIGTERM does."""

    @abstractmethod
    async def ended(self, within_s: float = 20.0) -> int:
        """Wait until it is gone; the exit code (0: clean)."""

    @abstractmethod
    async def aclose(self) -> None: ...


class ProcessWorker(Worker):
    """A process: a kill is kill -9."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        super().__init__(spec)
        source = str(Path(__file__).resolve().parents[3])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
        with (folder / f"{spec.name}.stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hivewire.testing.conformance.child", msgspec.json.encode(spec).decode()],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
            )

    @property
    def gone(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()

    def terminate(self) -> None:
        self.process.terminate()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def ended(self, within_s: float = 20.0) -> int:
        await until(lambda: self.gone, f"{self.name} ends", within_s)
        assert self.process.returncode is not None
        return self.process.returncode

    async def aclose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # also ends a frozen process
        await self.ended()


class LoopWorker(Worker):
    """A member in the test's own loop: a kill abandons it, and its lease runs out."""

    def __init__(self, spec: Spec, protocol: Engine, journal: Journal) -> None:
        super().__init__(spec)
        self.protocol = protocol
        self._stop = asyncio.Event()
        self._killed = False
        obedient = Obedient(spec.name, spec.agent, journal, self.kill)
        self._task = asyncio.create_task(self._run(obedient), name=spec.name)

    async def _run(self, obedient: Obedient) -> None:
        await self.protocol.__aenter__()
        await run_program(self.spec, self.protocol, obedient, self._stop)
        await self.protocol.close()
        obedient.say("bye")

    @property
    def gone(self) -> bool:
        return self._task.done()

    def kill(self) -> None:
        self._killed = True
        self.protocol.abandon()
        # Not at once: the handler that calls this may be the task's own child.
        asyncio.get_running_loop().call_soon(self._task.cancel)

    def terminate(self) -> None:
        self._stop.set()

    async def ended(self, within_s: float = 20.0) -> int:
        await until(self._task.done, f"{self.name} ends", within_s)
        if self._killed:
            return -signal.SIGKILL
        return 1 if self._task.cancelled() or self._task.exception() is not None else 0

    async def aclose(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([self._task])
        if not self._killed and not self._task.cancelled():
            error = self._task.exception()
            if error is not None:
                raise error
        await self.protocol.close()
