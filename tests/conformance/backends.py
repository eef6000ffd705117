"""The backends that the suite is bound to: a new one is one line in `FABRICS`."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import pytest

from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.redis_groups import Group
from hivewire.testing.servers import RedisServer, ServerMissing, free_port


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


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "redis.md"


def least_rights(password: str) -> list[str]:
    """Name and rules of the user that the guide tells to make."""
    (line,) = re.findall(r"^    ACL SETUSER (.+)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    return str(line).replace("PASSWORD", password).split()


class RedisFabric(Fabric):
    """A server of its own for each test; an outage is a kill -9 of it, and its end the start on the same port."""

    def __init__(self, folder: Path) -> None:
        # With `everysec` the server may confirm before it has written, when the disk is slow.
        self.server = RedisServer(folder / "redis", "--appendfsync", "no", "--user", *least_rights("sesame"))
        start(self.server)
        super().__init__(self.server.url.replace("://", "://hivewire:sesame@"), folder)
        self.unreachable_url = f"redis://127.0.0.1:{free_port()}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            self.server.kill()

    def restart_store(self) -> None:
        self.server.kill()
        self.server.start()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            self.server.start()


def start(server: RedisServer | Group) -> None:
    """Without a server on this machine the test is skipped; where CI is set it fails."""
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}; with CI set its tests must run")
        pytest.skip(str(missing))


def memory(folder: Path) -> Fabric:
    return Fabric(f"memory://{uuid4().hex}", folder)


FABRICS: dict[str, Callable[[Path], Fabric]] = {
    "memory": memory,
    "redis": RedisFabric,
    "sqlite": SQLiteFabric,
}
