"""The backends that the suite is bound to: a new one is one line in `FABRICS`."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from hivewire.testing.conformance.fabric import Fabric


class SQLiteFabric(Fabric):
    """A file of its own for each test; an outage is another connection that holds the write lock."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "hive.db"
        super().__init__(f"sqlite:///{self.path}", folder)
        blocked = folder / "a-file-not-a-folder"
        blocked.touch()
        self.unreachable_url = f"sqlite:///{blocked}/hive.db"

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        other = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        finally:
            other.close()


def memory(folder: Path) -> Fabric:
    return Fabric(f"memory://{uuid4().hex}", folder)


FABRICS: dict[str, Callable[[Path], Fabric]] = {
    "memory": memory,
    "sqlite": SQLiteFabric,
}
