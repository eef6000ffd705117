"""The bundled team at work over the real engine: a run from the plan to the accepted report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hivewire import Context, Message, Worker, connect
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.roster import Roster
from hivewire.rules.plan import parse_plan
from hivewire.rules.plan_state import RunState, new_run
from hivewire.teams.logs import steps
from hivewire.teams.logs.sample import Sample, write_sample
from hivewire.teams.logs.team import PLAN, TEAM, analyst, researcher, reviewer

RUN = "r1"


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return write_sample(tmp_path / "logs", lines=12_000, seed=3)


@pytest.fixture(params=["memory", "sqlite"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"sqlite:///{tmp_path / 'messages.db'}"


async def carry_out(target: str, team: Sequence[Worker], wanted: dict[str, Any], analysts: int = 3) -> RunState:
    """A run with one process's worth of each worker, but of the analyst `analysts`."""
    roster = Roster((worker.name, worker.capabilities) for worker in team)
    begun = new_run(RUN, parse_plan(PLAN, roster.capabilities), roster.capabilities, wanted)
    stop = asyncio.Event()
    protocols = [connect(target) for _ in range(analysts)]
    try:
        async with connect(target) as protocol, asyncio.TaskGroup() as group:
            for number, other in enumerate(protocols):
                for worker in team if number == 0 else [analyst]:
                    group.create_task(worker.serve(other, stop.wait()))
            async with Coordinator(None, protocol, team=team, name="run", discover=False) as coordinator:
                await coordinator.begin(begun)
                await coordinator.result(RUN)
                state = await coordinator.state(RUN)
            stop.set()
    finally:
        for other in protocols:
            await other.close()
    return state


def recounted(sample: Sample) -> int:
    return sum(sample.lines.values())


async def test_a_run_accounts_for_every_line(target: str, sample: Sample, tmp_path: Path) -> None:
    state = await carry_out(target, TEAM, {"paths": [sample.folder], "out": str(tmp_path / "out"), "pieces": 12})
    assert state.header.status == "done"
    output = state.rows["review"].output
    assert output["accepted"] is True
    assert output["lines"] == output["recounted"] == recounted(sample)
    mined = [row.output for name, row in state.rows.items() if name.startswith("mine-")]
    assert len(mined) >= 10
    assert sum(part["lines"] for part in mined) == recounted(sample)
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["facts"]
    for name, lines in sample.lines.items():
        assert facts[f"file {sample.folder}/{name}"] == lines


def careless_writer(mistakes: int) -> tuple[Worker, list[str | None]]:
    """A writer whose first `mistakes` reports are wrong by one line; and the feedback that it was given."""
    writer = Worker("writer", capabilities=["content_creation"])
    heard: list[str | None] = []

    @writer.on("task")
    def write(message: Message, ctx: Context) -> dict[str, Any]:
        output = steps.answer(steps.write, message.content)
        heard.append(message.content["feedback"])
        if len(heard) <= mistakes:
            path = Path(output["reports"]["report.md"])
            text = path.read_text()
            right = f"| Lines read | {output['lines']:,} |"
            assert right in text
            path.write_text(text.replace(right, f"| Lines read | {output['lines'] + 1:,} |"))
        return output

    return writer, heard


async def test_a_planted_mistake_is_sent_back_and_mended(sample: Sample, tmp_path: Path) -> None:
    writer, heard = careless_writer(mistakes=1)
    wanted = {"paths": [sample.folder], "out": str(tmp_path / "out"), "pieces": 4}
    state = await carry_out(f"memory://{tmp_path.name}", [researcher, analyst, writer, reviewer], wanted)
    assert state.header.status == "done"
    right, wrong = recounted(sample), recounted(sample) + 1
    assert heard == [None, f"report.md says {wrong:,} for 'lines'; it is {right:,}"]
    assert f"| Lines read | {right:,} |" in (tmp_path / "out" / "report.md").read_text()
    assert state.rows["write"].attempt == 2


async def test_a_writer_who_never_learns_fails_the_run_after_three_times(sample: Sample, tmp_path: Path) -> None:
    writer, heard = careless_writer(mistakes=99)
    wanted = {"paths": [sample.folder], "out": str(tmp_path / "out"), "pieces": 4}
    state = await carry_out(f"memory://{tmp_path.name}", [researcher, analyst, writer, reviewer], wanted)
    assert state.header.status == "failed"
    assert len(heard) == 4  # the first attempt and three more
    assert "report.md says" in state.rows["review"].error


async def test_nothing_to_read_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(bytes(64))
    wanted = {"paths": [str(tmp_path / "core")], "out": str(tmp_path / "out")}
    state = await carry_out(f"memory://{tmp_path.name}", TEAM, wanted)
    assert state.header.status == "failed"
    assert "binary: it holds NUL bytes" in state.rows["find"].error
