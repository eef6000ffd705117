"""One ledger's store, and all that a test may do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self

from hivewire.coordination.ledger import Ledger, Task, TaskChange, TaskStatus, open_ledger


class LedgerFabric:
    """What the suite needs of a ledger: a fixture `ledgers` that makes one of these, on a store of its own.

    A ledger that is not opened by `open_ledger` overrides `make`. A store that can be cut off overrides `outage`.

        @pytest.fixture
        async def ledgers(tmp_path):
            async with LedgerFabric(f"sqlite:///{tmp_path}/ledger.db") as ledgers:
                yield ledgers
    """

    shared = True
    """Whether several ledger objects, in several processes, see the same tasks."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.settings = settings
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def make(self, **settings: Any) -> Ledger:
        """A new ledger object on this store, not opened; its tables are made when it is."""
        return open_ledger(self.url, migrate=True, **{**self.settings, **settings})

    async def open(self, **settings: Any) -> Ledger:
        """A new ledger object on this store, closed when the test ends."""
        return await self._stack.enter_async_context(self.make(**settings))

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Nothing can be written for as long as this lasts."""
        yield

    @property
    def has_outages(self) -> bool:
        return type(self).outage is not LedgerFabric.outage


async def brought_to(ledger: Ledger, status: TaskStatus, **fields: Any) -> Task:
    """A new task that has come to this status by legal steps."""
    task = await ledger.create_task(Task(name="task", **fields))
    if status is TaskStatus.PENDING:
        return task
    if status in (TaskStatus.ASSIGNED, TaskStatus.IN_PROGRESS):
        task = await ledger.update_task(task.id, TaskChange(status=TaskStatus.ASSIGNED, assigned_to="coder"))
    if status is TaskStatus.ASSIGNED:
        return task
    return await ledger.update_task(task.id, TaskChange(status=status))
