"""Peers with a server: one of its own for each run, on a free port, or the one that was named."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hivewire.bench.workload import Peer
from hivewire.testing.kafka_servers import Broker
from hivewire.testing.servers import RedisServer

BROKER_PID = "BENCH_BROKER_PID"
"""The environment tells it to who measures on a broker that others have started."""
PARTITIONS = 3
"""As in our own topics."""
REDIS_OPTIONS = ("--appendfsync", "everysec")
"""The append-only file is on, as in all our servers."""


def cpu_of(pid: int | None) -> float:
    """Seconds of user and system time that a process has used, all threads; 0 where the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # not Linux
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Served(Peer):
    """One object in the producer's process, which starts the server, and one in the consumer's."""

    url = ""
    """Set before `open`: a server that runs already, on which nothing is left behind."""
    _is_own = False

    async def open(self, folder: Path) -> None:
        if not self.url:
            self._is_own = True
            self.start_server(folder)
        await self.connect(self.url)

    async def close(self) -> None:
        if not self._is_own:
            await self.remove()
        await self.disconnect()
        if self._is_own:
            self.stop_server()

    @abstractmethod
    def start_server(self, folder: Path) -> None:
        """Sets `url`; what the consumer expects to be there is there."""

    @abstractmethod
    def stop_server(self) -> None: ...

    @abstractmethod
    async def connect(self, url: str) -> None: ...

    @abstractmethod
    async def disconnect(self) -> None: ...

    async def remove(self) -> None:
        """Take away all that was made on the server."""
        raise NotImplementedError(f"{self.name} works on a server of its own alone")


class ServedByRedis(Served):
    server: RedisServer
    group = ""
    """Of the streams that it reads, if it needs one."""

    def start_server(self, folder: Path) -> None:
        self.server = RedisServer(folder / "redis", *REDIS_OPTIONS)
        self.server.start()
        self.url = self.server.url
        if self.group:
            for name in self.queue_names():
                self.server.ask("XGROUP", "CREATE", name, self.group, "0", "MKSTREAM")

    def stop_server(self) -> None:
        self.server.kill()

    def server_cpu_s(self) -> float:
        return cpu_of(self.server.pid) if self._is_own else 0.0


class ServedByKafka(Served):
    """One broker that is its own controller."""

    broker: Broker

    def start_server(self, folder: Path) -> None:
        self.broker = Broker(folder / "kafka")
        self.broker.start()
        self.url = self.broker.url

    def stop_server(self) -> None:
        self.broker.kill()

    def server_cpu_s(self) -> float:
        return cpu_of(self.broker.pid if self._is_own else int(os.environ.get(BROKER_PID, "0")) or None)


class TopicsOnKafka(ServedByKafka):
    """Its topics are made before, and deleted afterwards."""

    def topics(self) -> dict[str, int]:
        """With their partitions."""
        return dict.fromkeys(self.queue_names(), PARTITIONS)

    def _admin(self) -> Any:
        """Keep it until its answers are there."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://")})

    async def open(self, folder: Path) -> None:
        from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # it is public

        await super().open(folder)
        admin = self._admin()
        for made in admin.create_topics([NewTopic(*one, 1) for one in self.topics().items()]).values():
            made.result(30)

    async def remove(self) -> None:
        admin = self._admin()
        for gone in admin.delete_topics(list(self.topics())).values():
            gone.result(30)


@contextmanager
def shared_broker() -> Iterator[str]:
    """The URL of a broker for many runs: it takes seconds to start, and many messages until it is quick."""
    with TemporaryDirectory(prefix="hivewire-bench-") as folder, Broker(Path(folder)) as broker:
        os.environ[BROKER_PID] = str(broker.pid)
        try:
            yield broker.url
        finally:
            del os.environ[BROKER_PID]
