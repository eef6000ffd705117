"""The simulation of coordinators and workers: processes, faults and checks, all from one number.

    python -m hivewire.testing.simulated --profile redis --seed 17 --count 1000

A seed that breaks a promise is printed with its profile and replays exactly.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

from hivewire.testing.profiles import PROFILES
from hivewire.testing.seeded_driver import Verdict, add_arguments, judge
from hivewire.testing.simulated_checks import violations
from hivewire.testing.simulated_program import FAULTS_TO_STRIKE, LEAST_OPERATIONS, draw_program
from hivewire.testing.simulated_run import run_program
from hivewire.testing.virtual_loop import Deadlock, Livelock

MOST_DRAWS: Final = 20


def try_seed(profile: str, seed: int, *, with_log: bool = False) -> Verdict:
    """Run one seed. It is drawn again, always in the same way, until enough faults struck."""
    for draw in range(MOST_DRAWS):
        try:
            result = run_program(draw_program(profile, seed, draw))
        except (Deadlock, Livelock) as error:
            return Verdict(profile, seed, draw + 1, 0, (f"{error.code}: {error}",))
        broken = violations(result)
        struck, log = len(result.struck), tuple(result.book.log) if with_log else ()
        if broken or (struck >= FAULTS_TO_STRIKE and result.ledgerbook.operations >= LEAST_OPERATIONS):
            return Verdict(profile, seed, draw + 1, struck, tuple(broken), log)
    few = f"in {MOST_DRAWS} draws fewer than {FAULTS_TO_STRIKE} faults struck, or {LEAST_OPERATIONS} operations began"
    return Verdict(profile, seed, 0, 0, (few,))


def profile_of(seed: int) -> str:
    """The profiles take turns."""
    return list(PROFILES)[seed % len(PROFILES)]


def report(verdict: Verdict) -> str:
    """What a person needs to find the fault."""
    again = f"python -m hivewire.testing.simulated --profile {verdict.profile} --seed {verdict.seed} --log"
    broken = [f"  {line}" for line in verdict.broken]
    return "\n".join([f"BROKEN seed={verdict.seed} profile={verdict.profile}", *broken, f"again: {again}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run seeds and say which broke a promise. Exit code 1 when one did."""
    logging.getLogger("hivewire").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(prog="python -m hivewire.testing.simulated", description=__doc__)
    parser.add_argument("--profile", choices=(*PROFILES, "all"), default="all", help="all: they take turns")
    add_arguments(parser)
    args = parser.parse_args(argv)
    seeds = range(args.seed, args.seed + args.count)
    work = [(profile_of(seed) if args.profile == "all" else args.profile, seed) for seed in seeds]
    return judge(work, args, partial(try_seed, with_log=args.log), report)


if __name__ == "__main__":
    sys.exit(main())
