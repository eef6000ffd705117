"""The server of peers that have one: of its own for each run, its append-only file synced each second."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.workload import Peer
from hivewire.testing.servers import RedisServer

REDIS_OPTIONS = ("--appendfsync", "everysec")


def cpu_of(pid: int | None) -> float:
    """Seconds of user and system time that a process has used, all threads; 0 where the system does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # not Linux
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class ServedByRedis(Peer):
    server: RedisServer

    def start_server(self, folder: Path) -> None:
        self.server = RedisServer(folder / "redis", *REDIS_OPTIONS)
        self.server.start()

    def stop_server(self) -> None:
        self.server.kill()

    def server_cpu_s(self) -> float:
        return cpu_of(self.server.pid)
