"""Runs the command as a user does: another process, its output, its exit code."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).parents[2] / "src"


def environment(**more: str) -> dict[str, str]:
    """An environment without the settings of whoever runs the tests."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1", **more}


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def is_one_sentence(self) -> bool:
        """Nothing but one line on stderr, and no traceback."""
        return self.err.count("\n") == 1 and "Traceback" not in self.err and not self.out


class Hive:
    """A folder with a queue file, and the command that works on it."""

    def __init__(self, folder: Path, protocol: str | None = None) -> None:
        self.folder = folder
        self.protocol = protocol or f"sqlite:///{folder}/hive.db"

    def __call__(self, *args: str, stdin: str | bytes = "", protocol: str | None = None, **env: str) -> Ran:
        """Run `hivewire ARGS --protocol …` to its end."""
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        ran = subprocess.run(
            self._command(args, protocol),
            check=False,
            input=raw,
            capture_output=True,
            cwd=self.folder,
            env=environment(**env),
            timeout=50,
        )
        return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())

    def module(self, name: str, text: str) -> None:
        """Write a module into the folder."""
        (self.folder / f"{name}.py").write_text(text)

    @contextmanager
    def running(self, *args: str, **env: str) -> Iterator[Running]:
        """`hivewire ARGS --protocol …` while the block runs; killed after it if it still runs."""
        process = subprocess.Popen(
            self._command(args, None),
            cwd=self.folder,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  # what it does is safe beside threads
        )
        running = Running(process)
        try:
            yield running
        finally:
            running.end()

    def _command(self, args: tuple[str, ...], protocol: str | None) -> list[str]:
        where = self.protocol if protocol is None else protocol
        return [sys.executable, "-m", "hivewire", *args, *(["--protocol", where] if where else [])]


def _heed_ctrl_c() -> None:
    """Where the tests run in the background, their shell has made them and all that they start deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command that runs. What it prints is read line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.seen = ""

    def until(self, pattern: str, times: int = 1) -> list[str]:
        """Read until so many lines match; returns group 1 (or all) of each match."""
        found: list[str] = []
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode()
            self.seen += line
            if match := re.search(pattern, line):
                found.append(match[1] if match.re.groups else match[0])
                if len(found) == times:
                    return found
        raise AssertionError(f"it ended before {pattern!r} came {times} times:\n{self.seen}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Read the rest and return the exit code."""
        assert self.process.stdout is not None
        self.seen += self.process.stdout.read().decode()
        return self.process.wait()

    def end(self) -> None:
        """Kill it, and what it started: each of those is the leader of a group of its own."""
        started = re.findall(r"started pid=(\d+)", self.seen) + re.findall(r"(?<= processes: )[\d ]+", self.seen)
        for pid in {self.process.pid, *map(int, " ".join(started).split())}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_for_end(pid: int, within_s: float) -> bool:
    """Whether a process that is not our child ends within this time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)
