"""Runs every peer and workload in alternating rounds, a process each, and writes table, JSON, plot and page.

python -m benchmarks [--rounds 5] [--scale 1.0] [--within 600] [--only memory|sqlite|redis|kafka|promises]
    [--results FOLDER]
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks.floors import judge
from benchmarks.peers import PACKAGES, PEERS
from benchmarks.plan import BACKENDS, entries
from benchmarks.promises import names
from hivewire.bench.machine import machine
from hivewire.bench.plot import page, picture
from hivewire.bench.report import Verdict, make_report, table
from hivewire.bench.rounds import ChildFailed, Runs, child, run_idle, run_rounds
from hivewire.bench.served import shared_broker

AGENTS = 10_000


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _proofs(backends: Sequence[str], scale: float) -> list[Verdict]:
    proofs = []
    for name, backend in names(backends):
        _say(f"==> {name} on {backend}")
        try:
            proof = msgspec.json.decode(child("benchmarks.promises", name, backend, str(scale)), type=Verdict)
        except ChildFailed as error:
            proof = Verdict(f"{backend}: {name}", str(error), False)
        proofs.append(proof)
        _say(f"    {proof.measured}")
    return proofs


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Hivewire beside raw loops, libraries and frameworks, in one run."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every count of messages")
    parser.add_argument("--within", type=float, default=600.0, help="seconds; no round begins that would end later")
    parser.add_argument(
        "--only", choices=[*BACKENDS, "promises"], help="one backend, or the checks that are no comparison"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    backends = [options.only] if options.only in BACKENDS else list(BACKENDS)
    before, started = machine(PACKAGES), time.time()
    proofs = _proofs(backends, min(options.scale, 1.0))
    idle, failures = run_idle(dict.fromkeys(backends, ""), int(AGENTS * min(options.scale, 1.0)), say=_say)
    runs = Runs()
    if options.only != "promises":
        left_s = options.within - (time.time() - started)
        with ExitStack() as stack:
            places = {"kafka": stack.enter_context(shared_broker())} if "kafka" in backends else {}
            runs = run_rounds(
                entries(backends),
                PEERS,
                rounds=options.rounds,
                scale=options.scale,
                within_s=left_s,
                places=places,
                say=_say,
            )
    runs.failures += failures
    report = make_report(
        shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        time.time() - started,
        before,
        runs,
        idle=idle,
    )
    report.verdicts = judge(report.medians) + report.verdicts + proofs
    text = table(report)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / time.strftime("%Y-%m-%d-%H%M", time.gmtime(started))
    stem.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    stem.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    stem.with_suffix(".html").write_text(page(report), encoding="utf-8")
    stem.with_suffix(".svg").write_text(picture(report), encoding="utf-8")
    print(f"\nwritten: {stem}.txt, .json, .html, .svg")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
