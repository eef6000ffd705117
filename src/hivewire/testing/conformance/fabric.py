"""One store, and all that a test may do to it and to those who use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hivewire.backend import Append, Backend, Features, Record
from hivewire.engine.protocol import Engine
from hivewire.factory import connect
from hivewire.ids import new_id
from hivewire.testing.conformance.journal import Journal
from hivewire.testing.conformance.programs import Spec
from hivewire.testing.conformance.workers import LoopWorker, ProcessWorker, Worker

DEFAULTS: dict[str, Any] = {"lease_s": 1.0, "retry_first_s": 0.05, "retry_most_s": 1.0}


class Fabric:
    """What the conformance suite needs of a backend: a fixture `fabric` that makes one of these.

    A store that can be restarted or cut off overrides `restart` and `outage`; nothing else is needed.

        @pytest.fixture
        async def fabric(tmp_path):
            async with Fabric("mystore://localhost/test", tmp_path) as fabric:
                yield fabric
    """

    unreachable_url: str = ""
    """A store of this kind that cannot be opened, if there can be one."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.url = url
        self.folder = folder
        self.settings = {**DEFAULTS, **settings}
        self.lease_s: float = self.settings["lease_s"]
        self.journal = Journal(folder / "journal.jsonl")
        self.protocol: Engine
        self._made = 0
        self._workers: list[Worker] = []
        self._members: list[Engine] = []

    async def __aenter__(self) -> Self:
        self.protocol = await self.member()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:
            stack.callback(self.journal.close)
            for member in self._members:
                stack.push_async_callback(member.close, 0.5)
            for worker in self._workers:
                stack.push_async_callback(worker.aclose)

    @property
    def features(self) -> Features:
        return self.backend.features

    @property
    def backend(self) -> Backend:
        """The store below `protocol`, for what only a stranger would do to it."""
        return self.protocol.backend

    @property
    def durable(self) -> bool:
        return self.features.durability != "volatile"

    @property
    def can_look(self) -> bool:
        """Whether this store's queues can be looked through without taking."""
        return type(self.backend).peek is not Backend.peek

    @property
    def can_withdraw(self) -> bool:
        """Whether delayed messages can be removed from this store."""
        return type(self.backend).withdraw is not Backend.withdraw

    @property
    def takeover_s(self) -> float:
        """In how many seconds the work of a dead member must be with another one."""
        return self.lease_s + 2.0

    @property
    def resume_s(self) -> float:
        """In how many seconds consumers go on after a store has come back."""
        return 5.0

    @property
    def joins_slowly(self) -> bool:
        """Whether the store takes seconds to give a new member its share."""
        return False

    def now(self) -> float:
        """The clock of the journal."""
        return time.time()

    def connect(self, **settings: Any) -> Engine:
        """A new protocol object on this store, not opened."""
        made = connect(self.url, **{**self.settings, **settings})
        assert isinstance(made, Engine)
        return made

    async def member(self, **settings: Any) -> Engine:
        """A new protocol object on this store, closed when the test ends."""
        made = self.connect(**settings)
        self._members.append(made)
        return await made.__aenter__()

    async def inside(self, agent: str, *, program: str = "serve", **spec: Any) -> LoopWorker:
        """A worker inside this loop, handling when this returns; `spec` as in `Spec`."""
        made = self._spec(agent, program, spec)
        worker = LoopWorker(made, self.connect(**made.settings), self.journal)
        await self._ready(worker)
        return worker

    async def worker(self, agent: str, *, program: str = "serve", **spec: Any) -> Worker:
        """A worker whose crash is as real as can be: a process, where the store is shared."""
        if not self.features.shared:
            return await self.inside(agent, program=program, **spec)
        return await self.process(agent, program=program, **spec)

    async def process(self, agent: str, *, program: str = "serve", **spec: Any) -> ProcessWorker:
        """A worker that is a process; only where the store is shared."""
        worker = ProcessWorker(self._spec(agent, program, spec), self.folder)
        await self._ready(worker)
        return worker

    def _spec(self, agent: str, program: str, spec: dict[str, Any]) -> Spec:
        self._made += 1
        settings = {**self.settings, **spec.pop("settings", {})}
        name = spec.pop("name", f"w{self._made}")
        return Spec(
            name=name,
            agent=agent,
            url=self.url,
            journal=str(self.journal.path),
            settings=settings,
            program=program,
            **spec,
        )

    def is_gone(self, name: str) -> bool:
        """The worker of this name has ended, however."""
        return any(worker.gone for worker in self._workers if worker.name == name)

    async def _ready(self, worker: Worker) -> None:
        self._workers.append(worker)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 30.0
        while not self.journal.entries("ready", worker=worker.name):
            if isinstance(worker, ProcessWorker):
                assert worker.process.poll() is None, f"{worker.name} did not start"
            assert loop.time() < deadline, f"{worker.name} did not start"
            await asyncio.sleep(0.01)

    async def put_raw(self, agent: str, *bodies: bytes, key: str = "raw") -> list[str]:
        """Bytes straight into the agent's queue, past every check. Their ids."""
        records = [Record(id=new_id(), key=key, body=body) for body in bodies]
        refused = await self.backend.append([Append(queue=agent, records=records)])
        assert not refused
        return [record.id for record in records]

    async def restart(self) -> None:
        """Everybody closes, the store is restarted, `protocol` is a new object."""
        for worker in self._workers:
            await worker.aclose()
        self._workers.clear()
        for member in self._members:
            await member.close(0.5)
        self._members.clear()
        self.restart_store()
        self.protocol = await self.member()

    def restart_store(self) -> None:
        """Stop the store and start it again, while nobody uses it."""

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """The store cannot be written to for as long as this lasts. A store inside the process has none."""
        yield

    @property
    def has_outages(self) -> bool:
        return type(self).outage is not Fabric.outage
