"""Each example runs alone, as its first lines say, with no server and no key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LINE = "A queue of words, in order kept"
SAYS = {
    "basic_team": "In winter the bees cuddle up to keep their queen warm.\ncheck: 9.0",
    "from_langgraph": LINE,
    "from_openai_agents": LINE,
    "from_pydantic_ai": LINE,
    "llm_worker": "rating 7 of 10; 274 tokens",
    "sql_worker": "north: 38\nsouth: 12\nrefused: SQLite: attempt to write a readonly database",
}


@pytest.mark.parametrize("example", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_runs_and_says_what_it_found(example: str, tmp_path: Path) -> None:
    own = ("HIVEWIRE_", "REDIS_", "KAFKA_", "PROTOCOL_", "OPENAI_", "ANTHROPIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert SAYS[example] in done.stdout
