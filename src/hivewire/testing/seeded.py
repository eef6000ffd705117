"""The seeded driver: members, faults and checks, all from one number.

    python -m hivewire.testing.seeded --profile kafka --seed 17 --count 2000

A seed that breaks a promise is printed with its profile, replays exactly, and is made smaller.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

import msgspec

from hivewire.testing.profiles import PROFILES
from hivewire.testing.profiles_faults import Point, points
from hivewire.testing.seeded_book import Book
from hivewire.testing.seeded_checks import violations
from hivewire.testing.seeded_driver import Verdict, add_arguments, judge
from hivewire.testing.seeded_program import FAULTS_TO_STRIKE, Program, draw_program
from hivewire.testing.seeded_run import run_program
from hivewire.testing.virtual_loop import Deadlock, Livelock

MOST_DRAWS: Final = 20


def broken_by(program: Program) -> tuple[list[str], tuple[Point, ...], Book]:
    """The promises that a run of the program breaks, where faults struck, and what happened."""
    try:
        result = run_program(program)
    except (Deadlock, Livelock) as error:
        return [f"{error.code}: {error}"], tuple(fault.point for fault in program.faults), Book()
    except Exception:  # noqa: BLE001 - what the engine lets out breaks a promise, and ends no other seed
        return [f"raised: {traceback.format_exc()}"], tuple(fault.point for fault in program.faults), Book()
    return violations(result), tuple(fault.point for fault in result.struck), result.book


def _has_struck(program: Program, struck: Sequence[Point]) -> bool:
    return len(struck) >= FAULTS_TO_STRIKE and program.aim in struck


def try_seed(profile: str, seed: int, *, with_log: bool = False) -> Verdict:
    """Run one seed. It is drawn again, always in the same way, until enough faults struck, and that which was aimed."""
    for draw in range(MOST_DRAWS):
        program = draw_program(profile, seed, draw)
        broken, struck, book = broken_by(program)
        if broken or _has_struck(program, struck):
            kept = tuple(book.log) if with_log else ()
            return Verdict(profile, seed, draw + 1, len(struck), tuple(broken), kept, struck)
    why = f"in {MOST_DRAWS} draws fewer than {FAULTS_TO_STRIKE} faults struck, or none {' '.join(program.aim)}"
    return Verdict(profile, seed, 0, 0, (why,))


def program_of(profile: str, seed: int) -> Program:
    """The program that `try_seed` judged."""
    for draw in range(MOST_DRAWS):
        program = draw_program(profile, seed, draw)
        broken, struck, _ = broken_by(program)
        if broken or _has_struck(program, struck):
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
        broken, _, book = broken_by(program)
        lines.append(f"smallest: {len(program.steps)} steps, {len(program.faults)} faults")
        lines += [f"  {step}" for step in program.steps] + [f"  {fault}" for fault in program.faults]
        lines += [f"  {line}" for line in broken] + ["log:"] + [f"  {line}" for line in book.log]
    lines.append(f"again: python -m hivewire.testing.seeded --profile {verdict.profile} --seed {verdict.seed}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run seeds and say which broke a promise. Exit code 1 when one did."""
    parser = argparse.ArgumentParser(prog="python -m hivewire.testing.seeded", description=__doc__)
    parser.add_argument("--profile", choices=(*PROFILES, "all"), default="all")
    parser.add_argument("--no-shrink", action="store_true")
    add_arguments(parser)
    args = parser.parse_args(argv)
    profiles = list(PROFILES) if args.profile == "all" else [args.profile]
    work = [(profile, seed) for seed in range(args.seed, args.seed + args.count) for profile in profiles]
    all_points = {(profile, point) for profile in profiles for point in points(profile)}
    try_one = partial(try_seed, with_log=args.log)
    return judge(work, args, try_one, partial(report, shrinking=not args.no_shrink), all_points)


if __name__ == "__main__":
    sys.exit(main())
