"""`hivewire run`: plans from a file and from a model, shown and carried out."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hivewire.cli.planned import keep_plan
from hivewire.coordination.ledger import open_ledger
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest
from hivewire.llm.recorded import Recorded
from hivewire.rules.plan import parse_plan
from hivewire.rules.plan_state import Incoming, Started, new_run
from hivewire.testing.scripted_model import ScriptedModel
from tests.system.commands import environment

TEAM = """
import hivewire as hw

finder = hw.Worker("finder", capabilities=["find"])
teller = hw.Worker("teller", capabilities=["tell"])


@finder.on("task")
async def find(task, ctx):
    return {"bees": 3}


@teller.on("task")
async def tell(task, ctx):
    return {"checks": [f"{task.content['outputs']['look']['bees']} bees"]}


TEAM = [finder, teller]
"""
PLAN = {
    "subtasks": [
        {"name": "look", "assigned_to": "find", "timeout_s": 30},
        {"name": "report", "assigned_to": "tell", "dependencies": ["look"]},
    ]
}
TASK = "count the bees"
TREE = ["plan", "└─ look  [find, priority 5, at most 30 s]", "   └─ report  [tell, priority 5]"]


def run(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hivewire", *arguments],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "team.py").write_text(TEAM)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return tmp_path


def record(folder: Path, *answers: str) -> dict[str, str]:
    """What a model answers to the command's request; the environment that names it."""

    async def ask() -> None:
        model = Recorded(folder / "answers.jsonl", ScriptedModel(list(answers)), mode="record")
        request = TaskRequest(name=TASK, description=TASK, input={"paths": [], "out": "hivewire-out"})
        await Planner(model).plan(request, ["find", "tell"])

    asyncio.run(ask())
    return {"HIVEWIRE_LLM_MODEL": "recorded:answers.jsonl"}


def test_a_plan_is_shown_as_a_tree_and_as_mermaid(folder: Path) -> None:
    done = run("run", "--plan", "plan.json", "--plan-only", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == TREE
    assert lines[4] == "flowchart TD"
    assert "    s0 --> s1" in lines
    assert not (folder / "hivewire-out").exists()
    shown = json.loads(run("run", "--plan", "plan.json", "--plan-only", "--json", cwd=folder).stdout)
    assert shown["tree"] == TREE
    assert [subtask["name"] for subtask in shown["subtasks"]] == ["look", "report"]


def test_a_plan_that_the_team_cannot_do_is_refused(folder: Path) -> None:
    (folder / "plan.json").write_text(json.dumps({"subtasks": [{"name": "x", "assigned_to": "fly"}]}))
    done = run("run", "--plan", "plan.json", "--plan-only", "--team", "team:TEAM", cwd=folder)
    assert done.returncode == 2
    assert 'no worker has the capability "fly" (known: find, tell)' in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_s_plan_is_shown_and_carried_out(folder: Path) -> None:
    broken = json.dumps({"subtasks": [{"name": "look", "assigned_to": "fly"}]})
    env = record(folder, broken, f"Here you are:\n```json\n{json.dumps(PLAN)}\n```")
    shown = run("run", TASK, "--team", "team:TEAM", "--plan-only", cwd=folder, env=env)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[:3] == [TASK, *TREE[1:]]
    done = run("run", TASK, "--team", "team:TEAM", "--json", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["status"], figures["done"], figures["checks"]) == ("done", 2, ["3 bees"])
    kept = json.loads((folder / "hivewire-out" / "hivewire" / "plan.json").read_text())
    assert (kept["task"], len(kept["plan"]["subtasks"])) == (TASK, 2)


def test_another_task_neither_asks_a_model_nor_takes_the_plan_of_a_run_under_way(folder: Path) -> None:
    env = record(folder, json.dumps(PLAN))
    out = folder / "hivewire-out"
    keep_plan(out, "another task", parse_plan(json.dumps(PLAN)))
    kept = (out / "hivewire" / "plan.json").read_bytes()

    async def begin() -> None:
        async with open_ledger(f"sqlite:///{out}/hivewire/ledger.db", migrate=True) as ledger:
            await Runs(ledger).create(
                new_run("r", parse_plan(json.dumps(PLAN)), ["find", "tell"], {}), Incoming("start", Started(at=1.0))
            )

    asyncio.run(begin())
    (folder / "answers.jsonl").rename(folder / "nobody.jsonl")  # who asks is told that there is no answer
    done = run("run", TASK, "--team", "team:TEAM", cwd=folder, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "the unfinished run in" in done.stderr
    assert (out / "hivewire" / "plan.json").read_bytes() == kept
    (folder / "nobody.jsonl").rename(folder / "answers.jsonl")
    done = run("run", TASK, "--team", "team:TEAM", "--new", cwd=folder, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either a TASK, or a plan"),
        (["x", "--plan", "plan.json"], "either a TASK, or a plan"),
        (["x"], "no model is set"),
        (["--plan", "plan.json"], "--team module:name is missing"),
        (["x", "--team", "team:TEAM", "--plan-only"], "no model is set"),
        (["--plan", "nowhere.json", "--plan-only"], "nowhere.json cannot be read"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(folder: Path, arguments: list[str], said: str) -> None:
    done = run("run", *arguments, cwd=folder)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_prompt_that_is_wrong_is_named(folder: Path) -> None:
    env = record(folder, json.dumps(PLAN))
    (folder / "plan.md").write_text("$oops")
    done = run("run", TASK, "--team", "team:TEAM", "--plan-only", "--prompts", ".", cwd=folder, env=env)
    assert done.returncode == 2
    assert "plan.md' has $oops" in done.stderr
