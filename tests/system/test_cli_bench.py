"""`hivewire bench`: figures in words and JSON, plots, baselines that fail when a message costs more, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.commands import Hive


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


def bench(hive: Hive, *options: str, protocol: str = "memory") -> tuple[int, str, str]:
    ran = hive("bench", "--rounds", "1", "--scale", "0.01", *options, protocol=protocol)
    return ran.code, ran.out, ran.err


@pytest.mark.slow
def test_it_measures_and_draws_and_knows_when_a_message_costs_more(hive: Hive) -> None:
    page, plot, base = hive.folder / "page.html", hive.folder / "plot.svg", hive.folder / "base.json"
    code, out, err = bench(
        hive, "--workload", "w2,W6", "--json", "--report", str(page), "--plot", str(plot), "--save", str(base)
    )
    assert code == 0, err
    found = json.loads(out)
    assert [(row["workload"], row["peer"]) for row in found["medians"]] == [
        ("W2", "mem-deque"),
        ("W2", "asyncio.Queue"),
        ("W2", "hivewire memory"),
        ("W6", "mem-deque"),
        ("W6", "hivewire memory"),
    ]
    assert all(row["lost"] == row["duplicates"] == 0 < row["rate"] for row in found["medians"])
    assert found["ratios"].keys() == {"W2 hivewire memory", "W6 hivewire memory"}
    assert page.read_text().count("<svg") == 2
    assert plot.read_text().startswith("<svg")
    kept = json.loads(base.read_text())
    assert kept["ratios"].keys() == found["ratios"].keys()

    kept["ratios"] = {"W6 hivewire memory": 0.01}  # as if it had once cost next to nothing
    base.write_text(json.dumps(kept))
    code, out, err = bench(hive, "--workload", "W6", "--compare", str(base))
    assert code == 1
    assert "FAIL  W6 hivewire memory: CPU over raw <= 1.2 x the baseline's" in out
    kept["ratios"] = {"W6 hivewire memory": 10_000}
    base.write_text(json.dumps(kept))
    code, out, err = bench(hive, "--workload", "W6", "--compare", str(base))
    assert (code, "PASS  W6 hivewire memory: CPU over raw" in out) == (0, True), out + err


@pytest.mark.slow
def test_idle_agents_and_files_in_the_named_folder(hive: Hive) -> None:
    _, out, err = bench(hive, "--workload", "idle,W2", protocol=f"sqlite:///{hive.folder}/other.db")
    assert "100 idle agents on sqlite: " in out, err
    assert "W2   hivewire sqlite NORMAL" in out
    assert list(hive.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workload", "W9"], "'W9' is no workload"),
        (["--scale", "0"], "'0' is not a number above 0"),
        (["--protocol", "carrier-pigeon"], "there is a bench for memory, sqlite, redis, kafka"),
        (["--protocol", "sqlite:////nowhere/x.db"], "there is no folder '/nowhere'"),
        (["--compare", "none.json"], "cannot read the baseline none.json"),
        (["--report", "nowhere/x.html"], "there is no folder 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_runs(hive: Hive, options: list[str], said: str) -> None:
    ran = hive("bench", *options, protocol="memory")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1
