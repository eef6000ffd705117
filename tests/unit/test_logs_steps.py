"""The four steps one after another, and mistakes on the way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hivewire import Reject
from hivewire.rules.plan import parse_plan
from hivewire.teams.logs import sources, steps
from hivewire.teams.logs.review import review
from hivewire.teams.logs.steps import answer, mine, research, write
from hivewire.teams.logs.team import PLAN, TEAM

MAX_MESSAGE = 1_048_576


class Bench:
    """Does what a run does, in one thread: content in, output kept."""

    def __init__(self, folder: Path, **wanted: Any) -> None:
        self.out = folder / "out"
        self.input = {"out": str(self.out), "paths": [], **wanted}
        self.outputs: dict[str, Any] = {}
        self.subtasks: dict[str, dict[str, Any]] = {}

    def do(
        self, name: str, step: Callable[[steps.Subtask], dict[str, Any]], feedback: str | None = None
    ) -> dict[str, Any]:
        own = self.subtasks.get(name, {}).get("input", {})
        content = {
            "run": "r1",
            "subtask": name,
            "description": "",
            "attempt": 1,
            "input": {**self.input, **own},
            "outputs": self.outputs,
            "feedback": feedback,
        }
        output = answer(step, json.loads(json.dumps(content)))
        assert len(json.dumps(output)) < MAX_MESSAGE
        if "send_back" not in output:
            self.subtasks |= {subtask["name"]: subtask for subtask in output.pop("subtasks", [])}
            self.outputs[name] = output
        return output

    def mine_all(self) -> None:
        for name in self.subtasks:
            self.do(name, mine)

    def all(self) -> dict[str, Any]:
        self.do("find", research)
        self.mine_all()
        self.do("write", write)
        return self.do("review", review)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("a", "b"):
        lines = b"".join(b"2026-03-12 10:%02d:00 INFO job %d done\n" % (n % 60, n) for n in range(4000))
        (folder / f"{name}.log").write_bytes(lines + b"M\xfcller, no newline")
    (folder / "old.log.gz").write_bytes(gzip.compress(b"2026-03-11 10:00:00 ERROR it failed\n" * 500))
    (folder / "core").write_bytes(bytes(range(256)))
    (folder / "empty.log").write_bytes(b"")
    return folder


@pytest.fixture
def bench(tmp_path: Path, logs: Path) -> Bench:
    return Bench(tmp_path, paths=[str(logs)], pieces=8)


def test_every_line_is_accounted_for(bench: Bench) -> None:
    output = bench.all()
    assert output["accepted"] is True
    assert output["lines"] == output["recounted"] == 2 * 4001 + 500
    assert len(bench.subtasks) >= 3
    facts = json.loads((bench.out / "report.json").read_text())["facts"]
    assert (facts["files"], facts["skipped"], facts["undecodable"], facts["severity error"]) == (4, 1, 2, 500)
    assert bench.outputs["write"]["reports"]["report.md"] == str(bench.out / "report.md")


def test_doing_a_step_again_changes_nothing(bench: Bench) -> None:
    bench.all()
    before = {path: path.read_bytes() for path in bench.out.rglob("*") if path.is_file()}
    outputs = json.dumps(bench.outputs)
    bench.all()
    assert {path: path.read_bytes() for path in bench.out.rglob("*") if path.is_file()} == before
    assert json.dumps(bench.outputs) == outputs


def test_the_cut_changes_nothing_but_the_number_of_pieces(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LEAST_PIECE", 1000)
    reports, pieces = set(), set()
    for wished in (1, 3, 40):
        bench = Bench(tmp_path / str(wished), paths=[str(logs)], pieces=wished)
        assert bench.all()["accepted"] is True
        known = json.loads((bench.out / "report.json").read_text())
        pieces.add(known["facts"].pop("pieces"))
        for file in known["files"]:
            del file["pieces"]
        reports.add(json.dumps(known))
    assert len(reports) == 1
    assert len(pieces) == 3


@pytest.mark.parametrize(
    ("report", "old", "new", "told"),
    [
        (
            "report.md",
            "| Lines read | 8,502 |",
            "| Lines read | 8,503 |",
            "report.md says 8,503 for 'lines'; it is 8,502",
        ),
        ("report.md", "a.log` | 4,001 |", "a.log` | 4,000 |", "a.log'; it is 4,001"),
        ("report.md", "| Bursts | 1 |", "| Bursts | 0 |", "says 0 for 'bursts'; it is 1"),
        ("report.html", '"severity error">500<', '"severity error">5<', "report.html says 5 for 'severity error'"),
        ("report.html", 'data-fact="pieces"', 'data-fact="parts"', "report.html does not tell 'pieces'"),
        (
            "report.html",
            'data-fact="pieces"',
            'data-fact="parts"',
            "report.html tells 'parts', which is not in the input",
        ),
        ("report.md", "## Totals", "## Sums", "report.md does not tell 'lines'"),
    ],
)
def test_a_mistake_in_the_report_is_sent_back_and_mended(
    bench: Bench, report: str, old: str, new: str, told: str
) -> None:
    bench.all()
    path = bench.out / report
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    back = bench.do("review", review)["send_back"]
    assert back["subtask"] == "write"
    assert told in back["feedback"]
    bench.do("write", write, feedback=back["feedback"])
    assert bench.do("review", review)["accepted"] is True


def test_a_report_that_is_missing_is_sent_back(bench: Bench) -> None:
    bench.all()
    (bench.out / "report.html").unlink()
    back = bench.do("review", review)["send_back"]
    assert back["subtask"] == "write"
    assert "report.html cannot be read" in back["feedback"]


def test_an_analyst_who_lost_lines_is_sent_back(bench: Bench, logs: Path) -> None:
    bench.do("find", research)

    bench.mine_all()
    bench.do("write", write)
    with (logs / "b.log").open("r+b") as file:  # a line more, in the same number of bytes
        file.seek(10)
        file.write(b"\n")
    back = bench.do("review", review)["send_back"]
    assert back["subtask"].startswith("mine-")
    assert "b.log has 4,002 lines, its pieces have 4,001" in back["feedback"]
    bench.do(back["subtask"], mine, feedback=back["feedback"])
    bench.do("write", write)
    output = bench.do("review", review)
    assert output["accepted"] is True
    assert output["changed_pieces"] == 1  # the file is not what was found: told, and not counted
    assert "changed, not read" in (bench.out / "report.md").read_text()


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_a_lost_summary_is_made_again(bench: Bench, damage: str) -> None:
    bench.all()
    stored = bench.out / "pieces" / bench.outputs["mine-2"]["summary"]["name"]
    if damage == "gone":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes().replace(b"1", b"2"))
    for step in (write, review):
        assert bench.do("again", step)["send_back"]["subtask"] == "mine-2"
    bench.do("mine-2", mine)
    assert bench.do("review", review)["accepted"] is True


def test_files_that_change_during_the_run_are_told(bench: Bench, logs: Path) -> None:
    bench.do("find", research)
    (logs / "a.log").write_bytes(b"rotated\n")
    bench.mine_all()
    bench.do("write", write)
    output = bench.do("review", review)
    assert output["accepted"] is True
    assert output["changed_pieces"] >= 1
    assert output["lines"] == output["recounted"] == 4001 + 500
    assert any("not counted" in line for line in output["checks"])


def test_a_thousand_small_files_are_not_a_thousand_subtasks(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{'n' * 150}{number}.log").write_bytes(b"x %d\n" % number)
    bench = Bench(tmp_path, paths=[str(folder)], pieces=10)
    assert bench.all()["lines"] == 1000
    assert len(bench.subtasks) <= 12
    assert sum(len(json.dumps(subtask)) for subtask in bench.subtasks.values()) < 400_000  # kept in files


def test_a_sample_is_added_when_no_path_is_given(tmp_path: Path) -> None:
    bench = Bench(tmp_path, machine_logs=False, sample_lines=3000, pieces=4)
    assert bench.all()["lines"] >= 3000
    assert (bench.out / "sample" / "gateway.log").exists()
    assert "core.1234" in (bench.out / "report.md").read_text()  # binary, and told


def test_by_default_only_so_much_of_the_machines_logs_is_read(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "MACHINE_LOGS", str(logs))
    monkeypatch.setattr(steps, "_MOST_MACHINE_BYTES", 200_000)
    bench = Bench(tmp_path, sample_lines=0, pieces=4)
    assert bench.all()["lines"] == 4001 + 500
    assert "more than 0 MiB of this machine's logs" in (bench.out / "report.md").read_text()


def test_nothing_to_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(bytes(100))
    bench = Bench(tmp_path, paths=[str(tmp_path / "core")])
    with pytest.raises(Reject, match=r"nothing to read in .*core: binary"):
        bench.do("find", research)


@pytest.mark.parametrize("content", [None, "text", {}, {"run": "r", "subtask": "find", "input": {"paths": "x"}}])
def test_what_is_no_subtask_is_refused(content: Any) -> None:
    with pytest.raises(Reject):
        answer(research, content)


def test_a_stored_name_cannot_leave_the_folder(bench: Bench, tmp_path: Path) -> None:
    bench.do("find", research)
    (tmp_path / "secret.json").write_text("{}")
    bench.outputs["find"]["inventory"]["name"] = "../../secret.json"
    assert bench.do("write", write)["send_back"]["subtask"] == "find"


def test_the_plan_fits_the_team() -> None:
    capabilities = {capability for worker in TEAM for capability in worker.capabilities}
    plan = parse_plan(PLAN, capabilities | {"data_analysis"})
    assert [subtask.name for subtask in plan.subtasks] == ["find", "write", "review"]
    assert {"data_analysis", "research", "content_creation", "content_review"} == capabilities
