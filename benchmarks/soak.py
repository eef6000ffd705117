"""Memory and space in the store stay flat while messages flow, with failures, delays, dead letters, trail.

python -m benchmarks.soak [--seconds 600] [--rate 500] [--on memory,sqlite,redis,kafka] [--results FILE]

All at the same time, a process each. The first third is left out: windows fill then. Exit code 1 when one of them
grows by 1 MB a minute or more; in less than six minutes the bound is wider, as noise weighs more.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from hivewire.bench.machine import load, machine
from hivewire.testing.kafka_servers import Broker
from hivewire.testing.servers import RedisServer

STORES: Final = ("memory", "sqlite", "redis", "kafka")
SPACE: Final = {"sqlite": "files", "redis": "used_memory"}
"""What a store takes, where that is looked at. Kafka frees whole segments, which ten minutes do not fill."""
MB: Final = 1e6


def most_per_minute(seconds: int) -> float:
    """Bytes a minute that are too many."""
    return MB * max(1.0, 360 / seconds)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits best, in units of y for each of x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


class Course(NamedTuple):
    """What one store's process told, once a second, and how its queue ended."""

    store: str
    points: list[dict[str, Any]]
    left: int

    def per_minute(self, what: str) -> float:
        warm = self.points[len(self.points) // 3 :]
        return 60 * slope([(point["t"], point[what]) for point in warm])

    def findings(self, seconds: int, rate: int) -> Iterator[tuple[str, bool]]:
        """A line for each thing that was looked at, and whether it is as it should be."""
        handled = self.points[-1]["handled"]
        all_told = len(self.points) == seconds and handled > 0.9 * seconds * rate and self.left < rate
        yield f"{self.store}: {handled:,} handled in {len(self.points)} s, {self.left} left", all_told
        for what, name in (("memory", "memory"), ("store", SPACE.get(self.store, ""))):
            if name:
                grown, end = self.per_minute(what), self.points[-1][what] / MB
                text = f"{self.store}: {name} {grown / MB:+.3f} MB a minute, {end:.1f} MB at the end"
                yield text, grown < most_per_minute(seconds)


def start(store: str, seconds: int, rate: int, folder: Path, stack: ExitStack) -> subprocess.Popen[str]:
    """The store, if it is a server, and the process that works on it."""
    (folder / store).mkdir()
    if store == "redis":
        url = stack.enter_context(RedisServer(folder / store)).url
    elif store == "kafka":
        url = stack.enter_context(Broker(folder / store)).url
    else:
        url = "memory://" if store == "memory" else f"sqlite:///{folder / store}/soak.db"
    command = [sys.executable, "-m", "benchmarks.soak_program", url, str(seconds), str(rate)]
    with (folder / f"{store}.jsonl").open("w") as out:  # a file, so that nobody waits for a full pipe
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=out, stderr=subprocess.PIPE, text=True, env=_environment()
        )
    stack.callback(process.kill)
    return process


def _environment() -> dict[str, str]:
    """Without the settings of whoever runs this."""
    source = str(Path(__file__).parents[1] / "src")
    return {"PATH": os.environ["PATH"], "PYTHONPATH": source}


def course(store: str, process: subprocess.Popen[str], folder: Path) -> Course:
    """Raises `RuntimeError` with what it said when it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{store}: {said[-2_000:]}")
    *points, end = [json.loads(line) for line in (folder / f"{store}.jsonl").read_text().splitlines()]
    return Course(store, points, end["left"])


def soak(stores: Sequence[str], seconds: int, rate: int) -> list[Course]:
    with tempfile.TemporaryDirectory(prefix="soak-") as name, ExitStack() as stack:
        folder = Path(name)
        running = {store: start(store, seconds, rate, folder, stack) for store in stores}
        return [course(store, process, folder) for store, process in running.items()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Is what is in use flat?")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rate", type=int, default=500, help="messages a second, on each store")
    parser.add_argument("--on", default="memory,sqlite", help=f"of {', '.join(STORES)}")
    parser.add_argument("--results", type=Path, help="a file that keeps what was found")
    options = parser.parse_args()
    stores = options.on.split(",")
    if unknown := set(stores) - set(STORES):
        parser.error(f"--on {', '.join(sorted(unknown))}: there are {', '.join(STORES)}")
    if options.seconds < 9:
        parser.error("--seconds: at least 9")
    if options.rate < 10:
        parser.error("--rate: at least 10")
    began, before = time.gmtime(), machine()
    courses = soak(stores, options.seconds, options.rate)
    found = [finding for course in courses for finding in course.findings(options.seconds, options.rate)]
    command = shlex.join(["python", "-m", "benchmarks.soak", *sys.argv[1:]])
    lines = [
        f"machine: {before}",
        f"load: {before.load[0]:.2f} before, {load()[0]:.2f} after",
        f"command: {command}   ({time.strftime('%Y-%m-%dT%H:%M:%SZ', began)})",
        f"bound: {most_per_minute(options.seconds) / MB:g} MB a minute, of the best line after the first third",
        "",
        *[f"{'PASS' if is_met else 'FAIL'}  {text}" for text, is_met in found],
        "",
        *[line for course in courses for line in _minutes(course)],
    ]
    print("\n".join(lines))
    if options.results is not None:
        options.results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(is_met for _, is_met in found) else 1


def _minutes(course: Course) -> Iterator[str]:
    for what in ("memory", "store"):
        if what == "memory" or course.store in SPACE:
            each = [f"{point[what] / MB:.1f}" for point in course.points[:: max(len(course.points) // 10, 1)]]
            yield f"{course.store} {SPACE[course.store] if what == 'store' else what}, MB over time: {' '.join(each)}"


if __name__ == "__main__":
    sys.exit(main())
