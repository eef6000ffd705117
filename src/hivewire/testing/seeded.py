"""The seeded driver: members, faults and checks, all from one number.

    python -m hivewire.testing.seeded --profile kafka --seed 17 --count 2000

A seed that breaks a promise is printed with its profile, replays exactly, and is made smaller.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final

import msgspec

from hivewire.testing.profiles import PROFILES
from hivewire.testing.seeded_checks import violations
from hivewire.testing.seeded_program import FAULTS_TO_STRIKE, Program, draw_program
from hivewire.testing.seeded_run import run_program
from hivewire.testing.virtual_time import Deadlock, Livelock

MOST_DRAWS: Final = 20
_CHUNK: Final = 25


class Verdict(msgspec.Struct, frozen=True):
    """What became of one seed."""

    profile: str
    seed: int
    draws: int
    """Programs tried until enough faults struck work in flight; 0: none of them did."""
    struck: int
    broken: tuple[str, ...]
    log: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return not self.broken


def broken_by(program: Program) -> tuple[list[str], int, list[str]]:
    """The promises that a run of the program breaks, how many faults struck, and its log."""
    try:
        result = run_program(program)
    except (Deadlock, Livelock) as error:
        return [f"{error.code}: {error}"], len(program.faults), []
    return violations(result), len(result.struck), result.book.log


def try_seed(profile: str, seed: int, *, with_log: bool = False) -> Verdict:
    """Run one seed. It is drawn again, always in the same way, until enough faults struck."""
    for draw in range(MOST_DRAWS):
        broken, struck, log = broken_by(draw_program(profile, seed, draw))
        if broken or struck >= FAULTS_TO_STRIKE:
            return Verdict(profile, seed, draw + 1, struck, tuple(broken), tuple(log) if with_log else ())
    return Verdict(profile, seed, 0, 0, (f"in {MOST_DRAWS} draws fewer than {FAULTS_TO_STRIKE} faults struck",))


def program_of(profile: str, seed: int) -> Program:
    """The program that `try_seed` judged."""
    for draw in range(MOST_DRAWS):
        program = draw_program(profile, seed, draw)
        broken, struck, _ = broken_by(program)
        if broken or struck >= FAULTS_TO_STRIKE:
            return program
    return draw_program(profile, seed)


def shrink(program: Program, tries: int = 400) -> Program:
    """Leave out steps and faults as long as the same promise is still broken."""
    wanted = _names(broken_by(program)[0])
    size = max(1, len(program.steps) // 2)
    while tries > 0:
        smaller, tries = _without_pieces(program, size, wanted, tries)
        if smaller == program and size == 1:
            break
        program, size = smaller, max(1, size // 2)
    return program


def _without_pieces(program: Program, size: int, wanted: set[str], tries: int) -> tuple[Program, int]:
    """One pass: try to leave out each piece of so many steps, then each fault."""
    start = 0
    while start < len(program.steps) and tries > 0:
        steps = program.steps[:start] + program.steps[start + size :]
        tries -= 1
        candidate = msgspec.structs.replace(program, steps=steps)
        if _still_breaks(candidate, wanted):
            program = candidate
        else:
            start += size
    place = 0
    while place < len(program.faults) and tries > 0:
        candidate = msgspec.structs.replace(program, faults=program.faults[:place] + program.faults[place + 1 :])
        tries -= 1
        if _still_breaks(candidate, wanted):
            program = candidate
        else:
            place += 1
    return program, tries


def _still_breaks(program: Program, wanted: set[str]) -> bool:
    return bool(_names(broken_by(program)[0]) & wanted)


def _names(broken: Iterable[str]) -> set[str]:
    return {line.partition(":")[0] for line in broken}


def report(verdict: Verdict, *, shrinking: bool) -> str:
    """What a person needs to find the fault."""
    lines = [f"BROKEN seed={verdict.seed} profile={verdict.profile}", *(f"  {line}" for line in verdict.broken)]
    if shrinking and verdict.draws:
        program = shrink(program_of(verdict.profile, verdict.seed))
        broken, _, log = broken_by(program)
        lines.append(f"smallest: {len(program.steps)} steps, {len(program.faults)} faults")
        lines += [f"  {step}" for step in program.steps] + [f"  {fault}" for fault in program.faults]
        lines += [f"  {line}" for line in broken] + ["log:"] + [f"  {line}" for line in log]
    lines.append(f"again: python -m hivewire.testing.seeded --profile {verdict.profile} --seed {verdict.seed}")
    return "\n".join(lines)


def _try_all(work: Sequence[tuple[str, int]]) -> list[Verdict]:
    gc.disable()  # a run leaves little behind; looking for it each time costs a tenth of it
    try:
        return [try_seed(profile, seed) for profile, seed in work]
    finally:
        gc.enable()


def try_many(work: Sequence[tuple[str, int]], processes: int) -> Iterable[Verdict]:
    """The verdicts on (profile, seed), in order, worked out by several processes."""
    if processes <= 1:
        for profile, seed in work:
            yield try_seed(profile, seed)
        return
    with ProcessPoolExecutor(processes) as pool:
        chunks = [work[start : start + _CHUNK] for start in range(0, len(work), _CHUNK)]
        for verdicts in pool.map(_try_all, chunks):
            yield from verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Run seeds and say which broke a promise. Exit code 1 when one did."""
    parser = argparse.ArgumentParser(prog="python -m hivewire.testing.seeded", description=__doc__)
    parser.add_argument("--profile", choices=(*PROFILES, "all"), default="all")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", action="store_true", help="print all that happened")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--keep-going", type=int, default=1, help="stop after so many broken seeds")
    args = parser.parse_args(argv)
    profiles = list(PROFILES) if args.profile == "all" else [args.profile]
    work = [(profile, seed) for seed in range(args.seed, args.seed + args.count) for profile in profiles]
    if args.log:
        for profile, seed in work:
            print("\n".join(try_seed(profile, seed, with_log=True).log))
    began = time.perf_counter()
    done = redrawn = struck = 0
    broken: list[Verdict] = []
    for verdict in try_many(work, min(args.processes, len(work))):
        done += 1
        redrawn += max(0, verdict.draws - 1)
        struck += verdict.struck
        if not verdict.is_good:
            broken.append(verdict)
            print(report(verdict, shrinking=not args.no_shrink), flush=True)
            if len(broken) >= args.keep_going:
                break
    seconds = time.perf_counter() - began
    print(
        f"{done} seeds, {len(broken)} broken, {redrawn} drawn again, {struck} faults struck work in flight; "
        f"{seconds:.1f} s, {done / seconds * 60:.0f} seeds a minute",
        file=sys.stderr,
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
