"""A mock of the providers' APIs by other people (npm package @copilotkit/aimock), one for the session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivewire.testing.servers import ServerMissing, free_port
from tests.needed import needed

HERE = Path(__file__).parent / "mock"
_START_S = 30.0


class Mock:
    """The mock at work: what it was asked, and the faults that it makes."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def chaos(self, **rates: float) -> None:
        """From now on: `dropRate` (500), `malformedRate`, `disconnectRate`, `rateLimitRate` (429 with Retry-After)."""
        self._ask("DELETE", "/__aimock/chaos")
        if rates:
            self._ask("POST", "/__aimock/chaos", rates)

    def requests(self, path: str) -> int:
        """How many requests came for the path."""
        return sum(entry["path"].startswith(path) for entry in json.loads(self._ask("GET", "/__aimock/journal")))

    def is_ready(self) -> bool:
        try:
            self._ask("GET", "/__aimock/chaos")
        except OSError:
            return False
        return True

    def _ask(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            read: bytes = answer.read()
            return read


def _program() -> list[str]:
    """How to start it; installed once, in a folder of its own beside the lock that it follows."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise ServerMissing("the providers' mock needs Node.js 20.15 or newer and npm")
    folder = Path(tempfile.gettempdir()) / f"hivewire-wire-mock-{os.getuid()}"
    program = folder / "node_modules/@copilotkit/aimock/dist/cli.js"
    wanted = (HERE / "package-lock.json").read_text()
    lock = folder / "package-lock.json"
    if not program.exists() or not lock.exists() or lock.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(HERE / "package.json", folder)
        shutil.copy(HERE / "package-lock.json", folder)
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--cache", str(folder / ".npm")],
            cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ServerMissing(f"npm could not install the providers' mock:\n{done.stderr[-2000:]}")
    return [node, str(program)]


@pytest.fixture(scope="session")
def mock_server() -> Iterator[Mock]:
    with needed():
        program = _program()
    port = free_port()
    command = [*program, "--port", str(port), "--fixtures", str(HERE / "fixtures.json"), "--log-level", "warn"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            made = Mock(port)
            deadline = time.monotonic() + _START_S
            while not made.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"the mock did not start:\n{said.read().decode(errors='replace')}")
                time.sleep(0.02)
            yield made
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def mock(mock_server: Mock) -> Iterator[Mock]:
    """Without faults, before and after."""
    mock_server.chaos()
    yield mock_server
    mock_server.chaos()
