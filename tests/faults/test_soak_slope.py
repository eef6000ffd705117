"""Memory and file size stay flat while messages flow: 500 a second, with failures, delays, dead letters, trail.

Full counts (HIVEWIRE_SOAK=1): ten minutes, less than 1 MB a minute. Sampled: half a minute, in which a leak of a
kilobyte a message would be many times the bound.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.commands import environment

RATE = 500
SOAK = os.environ.get("HIVEWIRE_SOAK") == "1"
SECONDS = 600 if SOAK else 30
MOST_PER_MINUTE = 1_000_000 if SOAK else 12_000_000


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line that fits best, in units of y for each of x."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(0, 1), (1, 2), (2, 1)]) == 0


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 60)
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_memory_and_file_size_are_flat(store: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    url = "memory://" if store == "memory" else f"sqlite:///{tmp_path}/store/soak.db"
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak_program", url, str(SECONDS), str(RATE)],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2_000:]
    *points, end = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(points) == SECONDS
    assert points[-1]["handled"] > 0.9 * SECONDS * RATE
    assert end["left"] < RATE
    warm = points[SECONDS // 3 :]
    for what in ("memory", "files"):
        per_minute = 60 * slope([(point["t"], point[what]) for point in warm])
        print(f"{store} {what}: {per_minute / 1e6:+.2f} MB a minute, {points[-1][what] / 1e6:.1f} MB at the end")
        assert per_minute < MOST_PER_MINUTE, [point[what] for point in points]
