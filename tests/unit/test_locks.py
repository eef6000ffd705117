"""The locked requirements: pinned, hashed, without addresses, and in step with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _entries(lock: Path) -> list[str]:
    """One string a requirement, its hashes included."""
    text = "\n".join(line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]


def _name(requirement: str) -> str:
    matched = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert matched, requirement
    return matched[0].lower().replace("_", "-")


def test_there_are_locks_for_running_developing_and_measuring() -> None:
    assert [lock.stem for lock in LOCKS] == ["bench", "dev", "run"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_each_requirement_is_pinned_and_hashed_and_no_address_is_named(lock: Path) -> None:
    for entry in _entries(lock):
        assert re.match(r"[a-z0-9-]+==[0-9]", entry), entry
        assert "--hash=sha256:" in entry, entry
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*--?(index|extra-index|find-links|i\b|f\b)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("lock", "groups"), [("run", ["build"]), ("dev", ["build", "frameworks", "test", "lint"]), ("bench", ["bench"])]
)
def test_what_the_project_asks_for_is_locked(lock: str, groups: list[str]) -> None:
    locked = {_name(entry) for entry in _entries(ROOT / "requirements" / f"{lock}.txt")}
    asked = [
        *PROJECT["project"]["dependencies"],
        *(need for group in groups for need in PROJECT["dependency-groups"][group] if isinstance(need, str)),
    ]
    assert {_name(need) for need in asked} - locked == set()


def test_what_is_in_two_locks_has_one_version() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        if lock.stem == "bench":
            continue  # held to `dev` when it is made; a marker may split a package there
        for entry in _entries(lock):
            name, _, rest = entry.partition("==")
            versions.setdefault(name, set()).add(rest.split()[0])
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}
