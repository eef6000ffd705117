"""Runs many seeds, by several processes, and says which broke a promise."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from multiprocessing import get_context
from typing import Final

import msgspec

from hivewire.testing.profiles_faults import Point

_CHUNK: Final = 25
_MOST_CHUNKS: Final = 4
_PRELOADED: Final = [
    "hivewire.testing.simulated_checks",
    "hivewire.testing.seeded_checks",
    "hivewire.coordination.errands",
    "hivewire.coordination.team",
]
"""With all that they import, at once or later. Not the module that was begun by its name: it is run, not imported."""


class Verdict(msgspec.Struct, frozen=True):
    """What became of one seed."""

    profile: str
    seed: int
    draws: int
    """Programs tried until enough faults struck work in flight; 0: none of them did."""
    struck: int
    broken: tuple[str, ...]
    log: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    """Where the faults struck."""

    @property
    def is_good(self) -> bool:
        return not self.broken


TrySeed = Callable[[str, int], Verdict]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every driver can be told."""
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", action="store_true", help="print all that happened")
    parser.add_argument("--keep-going", type=int, default=1, help="stop after so many broken seeds")


def _try_all(try_seed: TrySeed, work: Sequence[tuple[str, int]]) -> list[Verdict]:
    gc.disable()  # what the runs leave behind goes with the process
    return [try_seed(profile, seed) for profile, seed in work]


def try_many(try_seed: TrySeed, work: Sequence[tuple[str, int]], processes: int) -> Iterable[Verdict]:
    """The verdicts on (profile, seed), in order, worked out by several processes."""
    if processes <= 1:
        for profile, seed in work:
            yield try_seed(profile, seed)
        return
    # A process is replaced before it is large: to begin another one, with everything imported, is cheaper than to
    # collect what the runs leave in it. Not by ProcessPoolExecutor: that of Python 3.11 may wait for ever for a process
    # that is to be replaced (python/cpython#115634).
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with context.Pool(processes, maxtasksperchild=_MOST_CHUNKS) as pool:
        chunks = [work[start : start + _CHUNK] for start in range(0, len(work), _CHUNK)]
        for verdicts in pool.imap(partial(_try_all, try_seed), chunks):
            yield from verdicts


def judge(
    work: Sequence[tuple[str, int]],
    args: argparse.Namespace,
    try_seed: TrySeed,
    report: Callable[[Verdict], str],
    points: Set[tuple[str, Point]] = frozenset(),
) -> int:
    """Try them all; print what broke, how many there were, and how many of these points were struck. The exit code."""
    left = set(points)
    began = time.perf_counter()
    done = redrawn = struck = 0
    broken: list[Verdict] = []
    for verdict in try_many(try_seed, work, min(args.processes, len(work))):
        for line in verdict.log:
            print(line)
        done += 1
        redrawn += max(0, verdict.draws - 1)
        struck += verdict.struck
        left -= {(verdict.profile, point) for point in verdict.points}
        if not verdict.is_good:
            broken.append(verdict)
            print(report(verdict), flush=True)
            if len(broken) >= args.keep_going:
                break
    seconds = time.perf_counter() - began
    places = f" at {len(points) - len(left)} of {len(points)} points" if points else ""
    print(
        f"{done} seeds, {len(broken)} broken, {redrawn} drawn again, {struck} faults struck work in flight{places}; "
        f"{seconds:.1f} s, {done / seconds * 60:.0f} seeds a minute",
        file=sys.stderr,
    )
    return 1 if broken else 0
