"""What `hivewire doctor` says of the place of an SQLite file."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hivewire.cli import doctor

MIB = 1 << 20


def states(path: Path) -> dict[str, str]:
    return {finding.check: finding.state for finding in doctor._file(path)}


@pytest.mark.parametrize(
    ("free", "state"),
    [(64 * MIB - 1, "bad"), (64 * MIB, "warning"), (1024 * MIB - 1, "warning"), (1024 * MIB, "ok")],
)
def test_little_space_is_a_warning_and_none_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert states(tmp_path / "hive.db")["free space"] == state


@pytest.mark.parametrize(("off_s", "is_told"), [(-6.0, True), (6.0, True), (4.0, False), (0.0, False)])
def test_a_file_system_with_another_clock_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float, is_told: bool
) -> None:
    monkeypatch.setattr(doctor, "_file_clock_off_s", lambda folder: off_s)
    assert states(tmp_path / "hive.db").get("clock") == ("warning" if is_told else None)


def test_the_clock_of_this_file_system_is_ours(tmp_path: Path) -> None:
    assert abs(doctor._file_clock_off_s(tmp_path)) < 60
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size", "is_told"), [(1024 * MIB, False), (1024 * MIB + 1, True)])
def test_a_log_that_does_not_shrink_is_told(tmp_path: Path, size: int, is_told: bool) -> None:
    with (tmp_path / "hive.db-wal").open("wb") as file:
        file.truncate(size)  # it takes no room
    assert ("write-ahead log" in states(tmp_path / "hive.db")) == is_told


def test_a_folder_that_is_not_there_is_all_that_is_said(tmp_path: Path) -> None:
    assert states(tmp_path / "nowhere" / "hive.db") == {"folder": "bad"}
