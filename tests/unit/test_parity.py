"""docs/parity.md names files and cases that exist, and every defect."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
CONFORMANCE = ROOT / "src" / "hivewire" / "testing" / "conformance"


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:src|tests|benchmarks|requirements|docs)/[^`\s]+|pyproject\.toml)`", TEXT))
    assert len(named) > 20
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_case_that_is_named_exists() -> None:
    named = set(re.findall(r"`([a-z_]+)\.(test_\w+)`", TEXT))
    assert len(named) > 20
    missing = [
        f"{module}.{case}"
        for module, case in sorted(named)
        if f"def {case}(" not in (CONFORMANCE / f"{module}.py").read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_defect_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", TEXT.split("## Its defects", 1)[1], re.MULTILINE)
    assert rows == [str(number) for number in range(1, 33)]


def test_every_row_says_where_it_is_or_why_not() -> None:
    for row in re.findall(r"^\| (?!there|---|#)(.*) \|$", TEXT, re.MULTILINE):
        here = row.rsplit(" | ", 1)[1]
        assert "`" in here or "*not yet*" in here or "*same*" in here or len(here) > 40, row
