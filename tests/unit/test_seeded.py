"""Seeded runs on virtual time: no seed breaks a promise, each replays exactly, and a broken one is made smaller.

HIVEWIRE_SOAK=1 pytest tests/unit/test_seeded.py                    # 2,000 seeds a profile
python -m hivewire.testing.seeded --profile kafka --seed 17         # one seed, for people
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from hivewire.testing import seeded
from hivewire.testing.profiles import PROFILES
from hivewire.testing.profiles_faults import Point, points
from hivewire.testing.seeded_book import Book
from hivewire.testing.seeded_program import FAULTS_TO_STRIKE, OPERATIONS, SLOTS, Program, draw_program
from hivewire.testing.seeded_run import run_program

_BLOCK = 25
_SEEDS = 2_000 if os.environ.get("HIVEWIRE_SOAK") == "1" else 150


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "first", [pytest.param(first, marks=[pytest.mark.slow] if first else []) for first in range(0, _SEEDS, _BLOCK)]
)
def test_no_seed_breaks_a_promise(profile: str, first: int) -> None:
    for seed in range(first, first + _BLOCK):
        verdict = seeded.try_seed(profile, seed)
        assert verdict.is_good, seeded.report(verdict, shrinking=False)
        assert verdict.struck >= FAULTS_TO_STRIKE
        turns = points(profile)
        assert turns[seed % len(turns)] in verdict.points


@pytest.mark.parametrize(
    ("profile", "seed"),
    [
        # A fan-out that outages ended.
        ("sql", 80433),
        # A false alarm: what was sent again after its death has all attempts anew.
        ("sql", 201640),
        # An acknowledgement that waited for its turn while its shard went passed for stored: the content was deleted.
        ("kafka", 204855),
        # What failed for the last time as its shard moved was begun once more by the next owner.
        ("kafka", 200615),
        ("kafka", 203159),
        # What was given back unstarted by a former owner was counted as an attempt.
        ("kafka", 100254),
        # A delayed one began while a later one of its key ran on at a former owner.
        ("kafka", 202309),
        # That an earlier attempt had failed passed for the end of the one that ran on, and a second copy was started.
        ("kafka", 310174),
        # In competing mode a copy of what ran on at a former owner was started beside it.
        ("kafka", 310062),
        # What had been taken was started at a former owner after the shard had gone.
        ("kafka", 320233),
        # What was finished and not stored when its shard went was begun again, beside the next one of its key.
        ("kafka", 323250),
        ("kafka", 1633),
        ("kafka", 3417),
        ("kafka", 30585),
        ("sql", 18148),
    ],
)
def test_seeds_that_found_something(profile: str, seed: int) -> None:
    verdict = seeded.try_seed(profile, seed)
    assert verdict.is_good, seeded.report(verdict, shrinking=False)


@pytest.mark.parametrize("profile", PROFILES)
def test_so_many_seeds_strike_before_and_after_each_write(profile: str) -> None:
    """The seeds take the points in turn, and each is struck by its own: see the test above."""
    turns = points(profile)
    assert {draw_program(profile, seed).aim for seed in range(len(turns))} == set(turns)
    assert len(turns) <= 50 <= _SEEDS
    writes = {
        "append",
        "dead",
        "renew",
        "schedule",
        "trail",
        "blob",
        "unblob",
        "effect",
        "subscribe",
        "revive",
        "purge",
    }
    writes |= {"save"} if profile == "kafka" else {"start", "settle", "again"}
    for place in writes:
        assert {(place, "early"), (place, "late")} <= set(turns)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_program_has_a_hundred_operations_and_three_members(profile: str) -> None:
    for seed in range(20):
        program = draw_program(profile, seed)
        assert len(program.steps) >= OPERATIONS
        assert {step.slot for step in program.steps} == set(range(SLOTS))


@pytest.mark.parametrize("profile", PROFILES)
def test_one_seed_always_goes_the_same_way(profile: str) -> None:
    for seed in range(3):
        program = draw_program(profile, seed)
        first, second = run_program(program), run_program(program)
        assert first.book.log == second.book.log
        assert first.world.history == second.world.history
        assert first.steps == second.steps


@pytest.mark.parametrize("profile", PROFILES)
def test_one_seed_goes_the_same_way_in_another_process(profile: str) -> None:
    """Nothing may depend on the order of a set of strings, which differs from process to process."""
    logs = {
        subprocess.run(
            [sys.executable, "-m", "hivewire.testing.seeded", "--profile", profile, "--seed", "7", "--log"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(logs) == 1
    assert logs.pop().count("\n") > OPERATIONS


def test_a_broken_program_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that fails as soon as anybody sends to `bee`: one send is left of the whole program."""

    def broken_by(program: Program) -> tuple[list[str], tuple[Point, ...], Book]:
        sent = any(getattr(step, "agent", "") == "bee" and hasattr(step, "ids") for step in program.steps)
        return (["made_up: bee got a message"] if sent else []), (), Book()

    monkeypatch.setattr(seeded, "broken_by", broken_by)
    small = seeded.shrink(draw_program("sql", 3))
    assert len(small.steps) == 1
    assert small.faults == ()


def test_a_seed_whose_faults_hit_the_air_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    aim, others = draw_program("sql", 1).aim, [("handle", "late")] * FAULTS_TO_STRIKE
    struck = iter(((), (aim, *others[:3]), tuple(others), (aim, *others[1:])))
    monkeypatch.setattr(seeded, "broken_by", lambda program: ([], next(struck), Book()))
    assert msgspec.structs.asdict(seeded.try_seed("sql", 1))["draws"] == 4
    monkeypatch.setattr(seeded, "broken_by", lambda program: ([], (), Book()))
    verdict = seeded.try_seed("sql", 1)
    assert not verdict.is_good
    assert "faults struck" in verdict.broken[0]
