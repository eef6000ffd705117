"""The unit tests of `rules/` notice changes of it: a sample here, every mutant with HIVEWIRE_SOAK=1."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from tests.mutants.judging import MOST_BYTES, survivors
from tests.mutants.listing import read_reasons
from tests.mutants.making import ROOT, Mutant, modules, mutants, path_of

_SOAK = os.environ.get("HIVEWIRE_SOAK") == "1"
_QUICK = ("effect", "retry")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(7200 if _SOAK else 300)
def test_mutants_are_killed_and_survivors_explained() -> None:
    sampled = ([*_QUICK, "--each", "10"], [])[_SOAK]
    command = [sys.executable, "-m", "tests.mutants", *sampled]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_what_changes_nothing_survives_and_what_breaks_all_does_not() -> None:
    source = path_of("retry").read_text(encoding="utf-8")
    chosen = next(mutant for mutant in mutants("retry") if mutant.function is not None)
    broken = source.replace("return self.ceiling_s(failures) * chance", "return 7.0")
    assert broken != source
    made = [
        Mutant("retry", line, "", compile(text, str(path_of("retry")), "exec"), function)
        for line, text, function in [(1, source, chosen.function), (2, source, None), (3, broken, None)]
    ]
    with mmap.mmap(-1, MOST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):  # as threads of earlier tests have
        assert [mutant.line for mutant in survivors("retry", made)] == [1, 2]


def test_each_reason_is_given_for_a_mutant_that_there_is() -> None:
    there = {f"{module}: {mutant.text}" for module in modules() for mutant in mutants(module)}
    assert set(read_reasons()) - there == set()
    assert len(there) > 1_200
