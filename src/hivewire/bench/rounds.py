"""Rounds of a plan: a process for each run, what is compared side by side, every second round backwards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from hivewire.bench.idle import Idle
from hivewire.bench.plan import Entry
from hivewire.bench.workload import Figures

RUN_LIMIT_S: Final = 400.0
IDLE_ON: Final = ("memory", "sqlite")
_FEWEST: Final = 500
Say = Callable[[str], None]


class Failure(msgspec.Struct):
    """A run that ended without figures. The others go on."""

    peer: str
    workload: str
    text: str


class Runs(msgspec.Struct, kw_only=True):
    """What came of it. `rounds`: those that were begun; fewer than asked when the time was over."""

    figures: list[Figures] = []
    failures: list[Failure] = []
    rounds: int = 0


class ChildFailed(Exception):
    """A child process ended with an error; the text is the last line that it wrote."""


def child(module: str, *arguments: str) -> bytes:
    """The last line that a module prints."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=RUN_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"not done after {RUN_LIMIT_S:g} s") from None
    if ran.returncode or not ran.stdout:
        said = ran.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"]
        raise ChildFailed(f"{said[-1]} (exit code {ran.returncode})")
    sys.stderr.buffer.write(ran.stderr)
    return ran.stdout.splitlines()[-1]


def run_rounds(
    plan: Sequence[Entry],
    addresses: Mapping[str, str],
    *,
    rounds: int,
    scale: float = 1.0,
    within_s: float = float("inf"),
    places: Mapping[str, str] | None = None,
    say: Say = lambda text: None,
) -> Runs:
    """No round begins that would not be done within the time. `places`: by backend, where it is not of our own."""
    runs, began = Runs(), time.monotonic()
    for number in range(rounds):
        passed = time.monotonic() - began
        if number and passed + passed / number > within_s:
            say(f"==> {number} of {rounds} rounds: another would not be done within {within_s:g} s")
            break
        runs.rounds += 1
        say(f"==> round {number + 1} of {rounds}")
        # What is compared runs next to each other, every second round backwards: a change of load hits all.
        for entry in plan if number % 2 == 0 else reversed(plan):
            _run(entry, addresses[entry.peer], scale, (places or {}).get(entry.backend, ""), runs, say)
    return runs


def run_idle(
    places: Mapping[str, str], agents: int, *, say: Say = lambda text: None
) -> tuple[list[Idle], list[Failure]]:
    """Memory of agents that wait, on the stores without a server: there the client is the same."""
    found, failures = [], []
    for backend in IDLE_ON:
        if backend in places:
            say(f"==> idle agents on {backend}")
            try:
                line = child("hivewire.bench.idle", backend, str(agents), places[backend])
            except ChildFailed as error:
                failures.append(Failure(f"hivewire {backend}", "idle", str(error)))
                continue
            found.append(msgspec.json.decode(line, type=Idle))
            say(f"    {found[-1].text}")
    return found, failures


def _run(entry: Entry, address: str, scale: float, place: str, runs: Runs, say: Say) -> None:
    count = str(max(int(entry.messages * scale), _FEWEST))
    try:
        line = child("hivewire.bench.one", address, entry.workload, count, *([place] if place else []))
    except ChildFailed as error:
        runs.failures.append(Failure(entry.peer, entry.workload, str(error)))
        say(f"    {entry.workload:4} {entry.peer:24} FAILED: {error}")
        return
    run = msgspec.json.decode(line, type=Figures)
    run.backend = entry.backend
    runs.figures.append(run)
    say(f"    {run.workload:4} {run.peer:24} {run.rate:>10,.0f}/s {run.cpu_us:>8.2f} us  p50 {run.p50_ms:.3f} ms")
