"""The backends that the suite is bound to: a new one is one line in `FABRICS`."""

from __future__ import annotations

import asyncio
import atexit
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import ClassVar
from uuid import uuid4

from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.redis_groups import Group, RedisCluster, say
from hivewire.testing.servers import RedisServer, free_port, redis_program, valkey_program
from tests.conformance.kafka_fabric import KafkaFabric
from tests.needed import needed


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

    program: Callable[[], str] = staticmethod(redis_program)

    def __init__(self, folder: Path) -> None:
        # With `everysec` the server may confirm before it has written, when the disk is slow.
        options = ("--appendfsync", "no", "--user", *least_rights("sesame"))
        self.server = RedisServer(folder / "redis", *options, program=self.program)
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


class ValkeyFabric(RedisFabric):
    program = staticmethod(valkey_program)


class ClusterFabric(Fabric):
    """One cluster for all tests of a process, emptied for each; an outage is a kill -9 of all its nodes."""

    shared: ClassVar[RedisCluster | None] = None

    def __init__(self, folder: Path) -> None:
        made = ClusterFabric.shared
        if made is None:
            where = Path(mkdtemp(prefix="hivewire-cluster-"))
            made = RedisCluster(
                where, "--user", *least_rights("sesame"), "+cluster|slots", "+cluster|countkeysinslot", "+asking"
            )
            atexit.register(shutil.rmtree, where, ignore_errors=True)
            atexit.register(made.kill)
            start(made)
            ClusterFabric.shared = made
        self.cluster = made
        for server in made.servers:
            if say(server, "ROLE")[0] == "master":
                say(server, "FLUSHALL")
        super().__init__(made.url.replace("://", "://hivewire:sesame@"), folder)
        self.unreachable_url = f"redis://127.0.0.1:{free_port()}?cluster=true"

    def restart_store(self) -> None:
        self.cluster.kill()
        self.cluster.restart()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.cluster.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.cluster.restart)


def start(server: RedisServer | Group) -> None:
    with needed():
        server.start()


def memory(folder: Path) -> Fabric:
    return Fabric(f"memory://{uuid4().hex}", folder)


FABRICS: dict[str, Callable[[Path], Fabric]] = {
    "kafka": KafkaFabric,
    "memory": memory,
    "redis": RedisFabric,
    "redis-cluster": ClusterFabric,
    "sqlite": SQLiteFabric,
    "valkey": ValkeyFabric,
}
