"""The conformance suite outside this repository: the two files of its guide are all that is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "test-a-backend.md").read_text()


@pytest.mark.processes
def test_another_project_runs_the_suite_with_one_fixture(tmp_path: Path) -> None:
    conftest, order, *_ = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_order.py").write_text(order)
    options = ["-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-k", "nack or unordered"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[2-9] passed", done.stdout)
