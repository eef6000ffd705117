"""Changes `rules/` in small ways, one at a time, and looks whether its unit tests notice.

    python -m tests.mutants                 every mutant (some minutes)
    python -m tests.mutants --each 5        at most 5 of each module, chosen by --seed
    python -m tests.mutants lanes cron      these modules
    python -m tests.mutants --write         every mutant, and the list in tests/mutants/survivors.md made anew; with
                                            modules what it says of these

Prints what was killed of each module and each survivor. A mutant that only says the same in another way cannot be
killed: survivors.md gives the reason of each, written by hand; `--write` keeps it. Exit code 1 if less than --least
percent are killed, in all or of one module, or if a survivor has no reason.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from tests.mutants.judging import TestsFail, survivors
from tests.mutants.listing import Found, read_reasons, write_list
from tests.mutants.making import ROOT, modules, mutants


def _judge(module: str, each: int | None, seed: int) -> Found:
    chosen = list(mutants(module))
    if each is not None and len(chosen) > each:
        chosen = random.Random(f"{seed} {module}").sample(chosen, each)
    left = survivors(module, chosen)
    return Found(module, len(chosen), [(mutant.line, mutant.text) for mutant in left])


def _judge_apart(module: str, each: int | None, seed: int) -> Found:
    """In a process of its own, which loads the tests of this module alone."""
    command = [sys.executable, "-m", "tests.mutants", module, "--json", "--seed", str(seed)]
    if each is not None:
        command += ["--each", str(each)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TestsFail(f"{module}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Found)


def _tell(one: Found, reasons: dict[str, str], least: float) -> bool:
    """False: something must be done."""
    print(f"{one.module}: {one.killed} of {one.count} killed, {one.percent:.0f} %", flush=True)
    is_good = one.percent >= least
    for line, text in one.left:
        reason = reasons.get(f"{one.module}: {text}", "")
        is_good = is_good and bool(reason)
        print(f"  {one.module}:{line}: {text}{f'  ({reason})' if reason else '  NO REASON GIVEN'}", flush=True)
    return is_good


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="of rules/, without .py")
    parser.add_argument("--each", type=int, help="at most so many of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=85.0, help="percent")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = set(args.modules) - set(modules())
    if unknown:
        parser.error(f"not in rules/: {', '.join(sorted(unknown))}")
    if args.write and args.each is not None:
        parser.error("--write tells of every mutant of a module: without --each")
    if args.json:
        found = _judge(args.modules[0], args.each, args.seed)
        print()
        print(msgspec.json.encode(found).decode(), flush=True)
        return 0
    chosen = args.modules or modules()
    reasons = read_reasons()
    all_found: list[Found] = []
    is_good = True
    with ThreadPoolExecutor(args.processes) as pool:
        try:
            for one in pool.map(lambda module: _judge_apart(module, args.each, args.seed), chosen):
                all_found.append(one)
                is_good = _tell(one, reasons, args.least) and is_good
                if args.write:
                    write_list([one], reasons)
        except TestsFail as error:
            print(error, file=sys.stderr)
            return 2
    killed, count = sum(one.killed for one in all_found), sum(one.count for one in all_found)
    print(f"{killed} of {count} killed: {100 * killed / max(count, 1):.1f} %")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
