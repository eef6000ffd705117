"""`hivewire run TASK`: a plan by a model, done by the ready agents in worker processes, tools included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.system.commands import environment
from tests.wire.conftest import Mock


def test_a_task_is_planned_done_and_paid(mock: Mock, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("In the garden: 42 bees.\n")
    (tmp_path / "prices.json").write_text('{"gpt-4.1": {"input": 2, "output": 8}}')
    settings = {
        "HIVEWIRE_LLM_MODEL": "openai:gpt-4.1",
        "HIVEWIRE_LLM_BASE_URL": f"{mock.url}/v1",
        "HIVEWIRE_LLM_API_KEY": "mock",
        "HIVEWIRE_BUDGET_PRICE_FILE": str(tmp_path / "prices.json"),
        "HIVEWIRE_BUDGET_RUN_MONEY": "1",
        "PROTOCOL_TYPE": "sqlite",
        "HIVEWIRE_URL": f"sqlite:///{tmp_path}/messages.db",
    }

    def hivewire(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hivewire", *arguments],
            cwd=tmp_path, env=environment(**settings), capture_output=True, text=True, timeout=55, check=False,
        )  # fmt: skip

    ran = hivewire("run", "Tell me about the bees in the notes", "--input", "notes.txt", "--json")
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert (figures["status"], figures["subtasks"], figures["done"], figures["lost"]) == ("done", 3, 3, 0)
    written = {name: Path(path).read_text() for name, path in figures["reports"].items()}
    assert written == {
        "read": "There are 42 bees [1].\n\n[1] notes.txt\n",
        "write": "Forty-two bees live in the garden.\n",
        "check": "It says what the notes say.\nRating: 9/10\n",
    }
    spent = json.loads(hivewire("budget", "label", "--json").stdout)
    assert {line["scope"]: line["calls"] for line in spent} == {
        "label/researcher": 2,
        "label/writer": 1,
        "label/reviewer": 1,
    }
    assert all(line["money"] > 0 for line in spent)
    (run,) = json.loads(hivewire("budget", "run", figures["run"], "--json").stdout)[:1]
    assert (run["calls"], run["limit"]) == (4, "money 1")
