"""Importing the package and asking the command for help stay light."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"]}
ROUNDS = 7
MOST_ROUNDS = 28

NEEDED_ANYWAY = "import asyncio, msgspec, sqlite3"
BARE = "import hivewire"
ALL_NAMES = "import hivewire; [getattr(hivewire, name) for name in dir(hivewire)]"
OF_A_WORKER = (
    "import hivewire; [getattr(hivewire, name) for home, names in hivewire._HOMES.items() for name in names"
    " if home not in ('coordination.coordinator', 'coordination.ledger', 'coordination.planner',"
    " 'coordination.effects')]"
)
"""All but what only a coordinator's process needs."""
"""The package loads its parts when they are asked for: this asks for all of them."""

ALLOWED_BESIDE = {"hivewire"} | {
    # ids and groups: sha256 of what an id is derived from
    *("hashlib", "_hashlib", "_blake2"),
    # plain functions as handlers: a pool of threads
    *("queue", "_queue"),
    # the state of a run: a dataclass
    *("dataclasses", "copy"),
    # models that are not available are asked again: jitter
    *("random", "_random", "bisect", "_bisect", "_sha512", "_sha2"),
    # settings: hivewire.toml and URLs
    *("pathlib", "fnmatch", "glob", "grp", "ntpath", "urllib", "ipaddress"),
}
"""Top-level modules that using the package may load beside what asyncio, msgspec and sqlite3 load."""


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout


def _cpu_s(code: str) -> float:
    return float(_run(f"import time; began = time.process_time(); {code}; print(time.process_time() - began)"))


def _loaded(code: str) -> set[str]:
    return set(_run(f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})").split())


@pytest.mark.parametrize("code", [BARE, OF_A_WORKER], ids=["bare", "names of a worker"])
def test_importing_the_package_costs_little_more_than_what_it_stands_on(code: str) -> None:
    # Others on the machine only add to what is measured: the least of each comes nearest to the cost itself.
    pairs: list[tuple[float, float]] = []
    ours, theirs = math.inf, 0.0
    while len(pairs) < ROUNDS or (ours > 1.5 * theirs and len(pairs) < MOST_ROUNDS):
        pairs.append((_cpu_s(code), _cpu_s(NEEDED_ANYWAY)))
        ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    assert ours <= 1.5 * theirs, f"{code}: {ours * 1000:.0f} ms of CPU, {NEEDED_ANYWAY}: {theirs * 1000:.0f} ms"


@pytest.mark.parametrize("code", [BARE, ALL_NAMES], ids=["bare", "all names"])
def test_importing_the_package_loads_nothing_unexpected(code: str) -> None:
    assert _loaded(code) - _loaded(NEEDED_ANYWAY) <= ALLOWED_BESIDE


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
