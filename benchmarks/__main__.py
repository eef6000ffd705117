"""Runs every peer and workload in alternating rounds, a process each, and writes table, JSON and plot.

python -m benchmarks [--rounds 7] [--scale 1.0] [--only memory|sqlite|redis|promises] [--results FOLDER]
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.machine import machine
from benchmarks.plan import BACKENDS, Entry, entries
from benchmarks.plot import page
from benchmarks.promises import Proof, names
from benchmarks.report import Report, judge, medians, table
from benchmarks.workload import Figures

RUN_LIMIT_S = 400


def _child(module: str, *arguments: str) -> bytes:
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, stdout=subprocess.PIPE, timeout=RUN_LIMIT_S, check=False)
    if ran.returncode:
        raise SystemExit(f"bench: {shlex.join(command)} ended with {ran.returncode}")
    return ran.stdout.splitlines()[-1]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rounds(plan: Sequence[Entry], rounds: int, scale: float) -> list[Figures]:
    runs: list[Figures] = []
    for number in range(rounds):
        _say(f"==> round {number + 1} of {rounds}")
        # What is compared runs next to each other, every second round backwards: a change of load hits all.
        for entry in plan if number % 2 == 0 else reversed(plan):
            line = _child("benchmarks.one", entry.peer, entry.workload, str(max(int(entry.messages * scale), 500)))
            run = msgspec.json.decode(line, type=Figures)
            runs.append(run)
            _say(f"    {run.workload:4} {run.peer:24} {run.rate:>10,.0f}/s {run.cpu_us:>8.2f} us")
    return runs


def _proofs(backends: Sequence[str], scale: float) -> list[Proof]:
    proofs = []
    for name, backend in names(backends):
        _say(f"==> {name} on {backend}")
        proofs.append(msgspec.json.decode(_child("benchmarks.promises", name, backend, str(scale)), type=Proof))
        _say(f"    {proofs[-1].text}")
    return proofs


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Hivewire beside raw references, in one run."
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every count of messages")
    parser.add_argument(
        "--only", choices=[*BACKENDS, "promises"], help="one backend, or the checks that are no comparison"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    backends = [options.only] if options.only in BACKENDS else list(BACKENDS)
    before = machine()
    started = time.time()
    runs = [] if options.only == "promises" else _rounds(entries(backends), options.rounds, options.scale)
    proofs = _proofs(backends, min(options.scale, 1.0))
    report = Report(
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        started_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        seconds=round(time.time() - started),
        machine=before,
        load_after=machine().load,
        medians=medians(runs),
        verdicts=judge(medians(runs), runs, proofs),
        proofs=proofs,
        runs=runs,
    )
    text = table(report)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / time.strftime("%Y-%m-%d-%H%M", time.gmtime(started))
    stem.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    stem.with_suffix(".html").write_text(page(report), encoding="utf-8")
    print(f"\nwritten: {stem}.txt, .json, .html")
    return 0 if all(verdict.is_met for verdict in report.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
