"""Several Redis servers that belong together: a cluster, a master with replicas, and the sentinels that watch it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hivewire.testing.servers import RedisServer, free_port, redis_program

SLOTS = 16384
_READY_S = 30.0
_ALWAYS = ("--appendfsync", "no", "--repl-diskless-sync-delay", "0", "--repl-timeout", "10")


class Refused(Exception):
    """The server's answer was an error."""


def say(server: RedisServer, *command: str, wait_s: float = 5.0) -> Any:
    """The whole answer, by a connection of its own."""
    line = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in map(str.encode, command))
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as connection:
        connection.sendall(b"*%d\r\n" % len(command) + line)
        with connection.makefile("rb") as answer:
            return _read(answer)


def _read(answer: Any) -> Any:
    line = answer.readline().rstrip(b"\r\n").decode()
    if not line:
        raise ConnectionError("the server hung up")
    kind, rest = line[:1], line[1:]
    if kind == "-":
        raise Refused(rest)
    if kind == ":":
        return int(rest)
    if kind == "$":
        return None if rest == "-1" else answer.read(int(rest) + 2)[:-2].decode(errors="replace")
    if kind == "*":
        return None if rest == "-1" else [_read(answer) for _ in range(int(rest))]
    return rest


def wait_for(condition: Callable[[], bool], what: str, within_s: float = _READY_S) -> None:
    """For set-up code that has no event loop."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if condition():
                return
        except (OSError, Refused):
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


class Group:
    """Servers that are started and killed together."""

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class RedisCluster(Group):
    """Masters with a replica each. Server n + `masters` is at first the replica of server n."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        masters: int = 3,
        replicas: bool = True,
        program: Callable[[], str] = redis_program,
    ) -> None:
        super().__init__()
        self.masters = masters
        self._buses = [free_port() for _ in range(masters * (2 if replicas else 1))]
        for number, bus in enumerate(self._buses):
            self.servers.append(
                RedisServer(
                    folder / f"node{number}", "--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                    "--cluster-port", str(bus), "--cluster-require-full-coverage", "no", *_ALWAYS, *options,
                    program=program,
                )
            )  # fmt: skip

    @property
    def url(self) -> str:
        return "redis://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> None:
        for server in self.servers:
            server.start()
        first, *others = self.servers
        share = SLOTS // self.masters
        for number, server in enumerate(self.servers[: self.masters]):
            last = SLOTS - 1 if number == self.masters - 1 else (number + 1) * share - 1
            say(server, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            say(server, "CLUSTER", "ADDSLOTSRANGE", str(number * share), str(last))
        for server in others:
            say(server, "CLUSTER", "MEET", "127.0.0.1", str(first.port), str(self._buses[0]))
        wait_for(lambda: all(self._knows_all(server) for server in self.servers), "every node knows every other")
        for number, server in enumerate(self.servers[self.masters :]):
            say(server, "CLUSTER", "REPLICATE", self.id_of(self.servers[number]))
        wait_for(lambda: all(self.is_well(server) for server in self.servers), "the cluster is well")

    def restart(self) -> None:
        """After a kill: as they were, with what their files say."""
        for server in self.servers:
            if server.pid is None:
                server.start()
        wait_for(lambda: all(self.is_well(server) for server in self.servers), "the cluster is well again")

    def _knows_all(self, server: RedisServer) -> bool:
        lines = say(server, "CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.servers) and not any("handshake" in line for line in lines)

    def is_well(self, server: RedisServer) -> bool:
        """All slots are served, and every replica follows its master."""
        if "cluster_state:ok" not in say(server, "CLUSTER", "INFO"):
            return False
        if sum(last - first + 1 for first, last, *_ in say(server, "CLUSTER", "SLOTS")) != SLOTS:
            return False
        role = say(server, "ROLE")
        return bool(role[0] == "master" or role[3] == "connected")

    @staticmethod
    def id_of(server: RedisServer) -> str:
        return str(say(server, "CLUSTER", "MYID"))

    def owner(self, slot: int) -> RedisServer:
        """Who has the slot, as the nodes that answer say."""
        for server in self.servers:
            try:
                found = say(server, "CLUSTER", "SLOTS", wait_s=1.0)
            except (OSError, Refused):
                continue
            for first, last, (_, port, *_), *_ in found:
                if first <= slot <= last and port in {each.port for each in self.servers}:
                    return next(each for each in self.servers if each.port == port)
        raise RuntimeError(f"nobody says who has slot {slot}")

    def begin_to_move(self, slot: int, target: RedisServer, most: int, pause_s: float = 0.0) -> int:
        """As an operator does, key by key; the slot stays in that state. How many keys were moved."""
        source = self.owner(slot)
        say(target, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.id_of(source))
        say(source, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.id_of(target))
        moved = 0
        while moved < most and (keys := say(source, "CLUSTER", "GETKEYSINSLOT", str(slot), "2")):
            say(source, "MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
            moved += len(keys)
            time.sleep(pause_s)
        return moved

    def move(self, slot: int, target: RedisServer, pause_s: float = 0.0) -> int:
        """All of it, and to the end."""
        source = self.owner(slot)
        moved = self.begin_to_move(slot, target, sys.maxsize, pause_s)
        for server in (target, source, *self.servers):
            try:
                say(server, "CLUSTER", "SETSLOT", str(slot), "NODE", self.id_of(target))
            except Refused as refused:
                if "replica" not in str(refused) and "master" not in str(refused):
                    raise
        return moved

    def move_at_once(self, slot: int, target: RedisServer) -> None:
        """As Valkey 9 does by itself: the slot is with one node until it is with the other."""
        source = self.owner(slot)
        say(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", str(slot), str(slot), "NODE", self.id_of(target))
        wait_for(lambda: self.owner(slot) is target, "the slot has moved")


class _Sentinel(RedisServer):
    """It writes what it knows into its own configuration."""

    def arguments(self) -> list[str]:
        return [str(self.folder / "sentinel.conf"), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]


class RedisWatched(Group):
    """A master with replicas, and sentinels that make a replica the master when it is gone."""

    NAME = "hive"

    def __init__(self, folder: Path, *options: str, replicas: int = 1, sentinels: int = 3, down_ms: int = 500) -> None:
        super().__init__()
        self.master = RedisServer(folder / "master", *_ALWAYS, *options)
        self.replicas = [
            RedisServer(folder / f"replica{n}", "--replicaof", f"127.0.0.1 {self.master.port}", *_ALWAYS, *options)
            for n in range(replicas)
        ]
        self.sentinels = [_Sentinel(folder / f"sentinel{n}") for n in range(sentinels)]
        self._down_ms = down_ms
        self.servers = [self.master, *self.replicas, *self.sentinels]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis://{places}?sentinel_master={self.NAME}"

    def start(self) -> None:
        for server in (self.master, *self.replicas):
            server.start()
        wait_for(lambda: all(say(each, "ROLE")[3] == "connected" for each in self.replicas), "the replicas follow")
        quorum = len(self.sentinels) // 2 + 1
        for sentinel in self.sentinels:
            sentinel.folder.mkdir(parents=True, exist_ok=True)
            (sentinel.folder / "sentinel.conf").write_text(
                f"sentinel monitor {self.NAME} 127.0.0.1 {self.master.port} {quorum}\n"
                f"sentinel down-after-milliseconds {self.NAME} {self._down_ms}\n"
                f"sentinel failover-timeout {self.NAME} 3000\n"
            )
            sentinel.start()
        wait_for(lambda: all(self._sees_all(sentinel) for sentinel in self.sentinels), "the sentinels see each other")

    def _sees_all(self, sentinel: RedisServer) -> bool:
        found = dict(zip(*[iter(say(sentinel, "SENTINEL", "MASTER", self.NAME))] * 2, strict=True))
        return (
            int(found["num-slaves"]) == len(self.replicas)
            and int(found["num-other-sentinels"]) == len(self.sentinels) - 1
            and found["flags"] == "master"
        )
