"""Coordinators and workers on virtual time, struck by faults: no seed breaks a promise, and each replays exactly.

HIVEWIRE_SOAK=1 pytest tests/unit/test_simulated.py                       # 10,000 seeds more
python -m hivewire.testing.simulated --profile redis --seed 17 --log      # one seed, for people
"""

from __future__ import annotations

import pytest

from hivewire.testing import simulated_run
from hivewire.testing.conformance.waiting import SOAK, count
from hivewire.testing.profiles import PROFILES
from hivewire.testing.seeded_driver import try_many
from hivewire.testing.simulated import profile_of, report, try_seed
from hivewire.testing.simulated_checks import violations
from hivewire.testing.simulated_program import FAULTS_TO_STRIKE, draw_program
from hivewire.testing.simulated_run import run_program

_BLOCK = 25
_SEEDS = 1_000


@pytest.mark.parametrize(
    "first", [pytest.param(first, marks=[pytest.mark.slow] if first else []) for first in range(0, _SEEDS, _BLOCK)]
)
def test_no_seed_breaks_a_promise(first: int) -> None:
    """Each has at least 100 operations, and at least 5 faults that struck work in flight; else it is broken, too."""
    for seed in range(first, first + _BLOCK):
        verdict = try_seed(profile_of(seed), seed)
        assert verdict.is_good, report(verdict)
        assert verdict.struck >= FAULTS_TO_STRIKE


@pytest.mark.parametrize(("profile", "seed"), [("kafka", 51281), ("sql", 51267)])
def test_seeds_that_found_something(profile: str, seed: int) -> None:
    """What a shard that moved had taken was never given back; a finished subtask began anew after a cancel."""
    verdict = try_seed(profile, seed)
    assert verdict.is_good, report(verdict)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(3_600 if SOAK else 120)
def test_more_seeds_in_two_processes() -> None:
    work = [(profile_of(seed), seed) for seed in range(_SEEDS, _SEEDS + count(26, 10_000))]
    broken = [report(verdict) for verdict in try_many(try_seed, work, 2) if not verdict.is_good]
    assert not broken


@pytest.mark.parametrize("profile", PROFILES)
def test_one_seed_always_goes_the_same_way(profile: str) -> None:
    for seed in range(2):
        program = draw_program(profile, seed)
        first, second = run_program(program), run_program(program)
        assert first.book.log == second.book.log
        assert first.world.history == second.world.history
        assert first.logs == second.logs
        assert first.steps == second.steps


def test_a_seed_in_which_too_little_happened_goes_on_with_one_more_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = draw_program("sql", 3).spare.run
    assert spare not in run_program(draw_program("sql", 3)).states
    monkeypatch.setattr(simulated_run, "LEAST_OPERATIONS", 1_000_000)
    result = run_program(draw_program("sql", 3))
    assert spare in result.states
    assert not violations(result)
