"""The public types, seen from outside: mypy accepts what is right and refuses what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def _errors(path: Path) -> dict[int, set[str]]:
    """The codes of the errors on each line, as a program outside this repository would see them."""
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-error-summary",
            "--follow-imports",
            "silent",
            "--config-file",
            "",
            path,
        ],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ran.stderr, ran.stderr
    found: dict[int, set[str]] = defaultdict(set)
    for line in ran.stdout.splitlines():
        matched = re.match(rf".*{path.name}:(\d+): error: .*\[([a-z-]+)\]$", line)
        if matched:
            found[int(matched[1])].add(matched[2])
        else:
            assert ": note: " in line, line
    return dict(found)


def test_a_right_program_is_accepted() -> None:
    assert _errors(HERE / "accepted.py") == {}


def test_each_wrong_line_is_refused() -> None:
    expected = {
        number: set(line.split("# refused: ")[1].split())
        for number, line in enumerate((HERE / "refused.py").read_text(encoding="utf-8").splitlines(), start=1)
        if "# refused: " in line
    }
    found = _errors(HERE / "refused.py")
    assert sorted(found) == sorted(expected)
    for number, codes in found.items():
        assert codes & expected[number], (number, codes)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "src" / "hivewire" / "py.typed").exists()
