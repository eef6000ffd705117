"""The README is true: what it names exists, what it shows runs, what exists is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "hivewire"
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def _map() -> str:
    section = README.split("## Where things are", 1)[1]
    return section.split("\n\n", 2)[1]


def _named() -> list[Path]:
    """Every path of the map: the first column of its lines, modules below the package."""
    paths, below = [], ROOT
    for line in _map().splitlines():
        inner = line.startswith(" " * 8)
        for name in re.split(r"\s{2,}", line.strip())[0].split(" "):
            paths.append((below if inner else ROOT) / name)
        if line.strip() == "src/hivewire/":
            below = PACKAGE
    return paths


def test_what_the_map_names_exists() -> None:
    missing = [str(path.relative_to(ROOT)) for path in _named() if not path.exists()]
    assert not missing


def test_every_top_level_module_is_on_the_map() -> None:
    named = {path.name for path in _named() if path.parent == PACKAGE}
    here = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here - named == set()


def test_every_command_is_named_and_every_named_command_exists() -> None:
    from hivewire.cli.main import COMMANDS

    section = README.split("## Commands", 1)[1].split("\n## ", 1)[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(?:hivewire )?([a-z]+)", row)}
    assert named == set(COMMANDS)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)`", README)) <= targets


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.stem
)
def test_every_linked_file_exists(page: Path) -> None:
    linked = [
        link
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert [link for link in linked if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("source", EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs_and_prints_what_it_says(source: str, tmp_path: Path) -> None:
    says = re.findall(r"print\(.*\)  # (.*)$", source, re.MULTILINE)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == says
