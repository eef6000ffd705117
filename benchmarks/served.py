"""Peers with a server: of its own for each run, on a free port."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

from benchmarks.workload import Peer
from hivewire.testing.servers import RedisServer

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

    url: str

    async def open(self, folder: Path) -> None:
        self.start_server(folder)
        await self.connect(self.url)

    async def close(self) -> None:
        await self.disconnect()
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
        return cpu_of(self.server.pid)
