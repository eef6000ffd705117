"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

from hivewire.testing.servers import ServerMissing, redis_program


class Machine(msgspec.Struct, kw_only=True):
    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    sqlite: str
    redis: str = ""
    packages: dict[str, str]
    load: tuple[float, float, float]

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.packages.items())
        hardware = f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB"
        return f"{hardware}; {self.system}; Python {self.python}, SQLite {self.sqlite}, {self.redis}, {packages}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


PACKAGES: Final = ("msgspec", "uvloop", "hiredis", "confluent-kafka")


def _redis() -> str:
    """Name and version of the server, in its own words."""
    try:
        said = subprocess.run([redis_program(), "--version"], capture_output=True, text=True, check=True).stdout
    except (ServerMissing, OSError):
        return "no Redis server"
    words = said.split()
    return f"{words[0]} {next(word for word in words if word.startswith('v='))[2:]}"


def _versions(names: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load() -> tuple[float, float, float]:
    return os.getloadavg()


def machine(packages: Sequence[str] = ()) -> Machine:
    """`packages`: whose versions matter beside ours."""
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        system=f"{platform.system()} {platform.release().split('-')[0]}",
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        redis=_redis(),
        packages=_versions([*PACKAGES, *packages]),
        load=load(),
    )
