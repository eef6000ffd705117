"""Importing the package and asking the command for help stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}
ROUNDS = 7

NEEDED_ANYWAY = "asyncio, msgspec, sqlite3"
ALLOWED_BESIDE = {
    "hivewire",
    # ids: sha256 of what an id is derived from
    "hashlib",
    "_hashlib",
    "_blake2",
}
"""Top-level modules that `import hivewire` may load beside what asyncio, msgspec and sqlite3 load."""


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout


def _cpu_s(imports: str) -> float:
    return float(
        _run(f"import time; began = time.process_time(); import {imports}; print(time.process_time() - began)")
    )


def _loaded(imports: str) -> set[str]:
    return set(
        _run(f"import sys; import {imports}; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    )


def test_importing_the_package_costs_little_more_than_what_it_stands_on() -> None:
    pairs = [(_cpu_s("hivewire"), _cpu_s(NEEDED_ANYWAY)) for _ in range(ROUNDS)]
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    assert ours <= 1.5 * theirs, (
        f"import hivewire: {ours * 1000:.0f} ms, {NEEDED_ANYWAY}: {theirs * 1000:.0f} ms of CPU"
    )


def test_importing_the_package_loads_nothing_unexpected() -> None:
    assert _loaded("hivewire") - _loaded(NEEDED_ANYWAY) <= ALLOWED_BESIDE


def test_help_is_answered_at_once() -> None:
    def help_cpu_s() -> float:
        process = subprocess.Popen(
            [sys.executable, "-m", "hivewire", "--help"], env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    assert median(help_cpu_s() for _ in range(3)) <= 0.4
