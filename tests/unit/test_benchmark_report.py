"""The benchmark's own arithmetic: medians, ratios, floors, losses, baselines; its pages need nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.floors import judge
from hivewire.bench import baseline, rounds
from hivewire.bench.idle import Idle
from hivewire.bench.machine import Machine
from hivewire.bench.plan import Entry
from hivewire.bench.plot import page, picture
from hivewire.bench.report import Report, Verdict, make_report, medians, nothing_lost, ratios, table
from hivewire.bench.rounds import ChildFailed, Failure, Runs, child, run_rounds
from hivewire.bench.workload import Figures
from hivewire.errors import SettingsError

MACHINE = Machine(
    cpu="A <CPU>",
    cores=2,
    memory_gib=24,
    system="Linux 6",
    python="3.11.2",
    sqlite="3.40.1",
    packages={},
    load=(0.1, 0.2, 0.3),
)


def run(peer: str, workload: str = "W2", *, rate: float, lost: int = 0, duplicates: int = 0) -> Figures:
    return Figures(
        backend="memory", peer=peer, workload=workload, count=1_000, rate=rate, cpu_us=1e6 / rate, p50_ms=1, p99_ms=2,
        lost=lost, duplicates=duplicates, load=1, rss_mb=30,
    )  # fmt: skip


def report(runs: list[Figures], *more: Verdict, idle: tuple[Idle, ...] = ()) -> Report:
    made = make_report("hivewire bench", "2026-01-01", 1, MACHINE, Runs(figures=runs, rounds=1), idle=idle)
    made.verdicts = judge(made.medians) + made.verdicts + list(more)
    return made


def test_the_median_of_rates_and_the_sum_of_losses() -> None:
    runs = [run("a", rate=rate, lost=lost) for rate, lost in ((10, 0), (1_000, 1), (20, 0))]
    (middle,) = medians(runs)
    assert (middle.rate, middle.lost) == (20, 1)


def test_a_ratio_is_that_of_one_round_and_the_median_of_all() -> None:
    runs = []
    for raw, ours in ((1_000.0, 100.0), (10.0, 5.0), (1_000.0, 250.0)):  # the second round was disturbed
        runs += [run("mem-deque", rate=raw), run("hivewire memory", rate=ours), run("asyncio.Queue", rate=1)]
    assert ratios(runs) == {"W2 hivewire memory": 4.0}


def test_a_floor_holds_at_its_share_and_not_below() -> None:
    for rate, is_met in ((450.0, True), (449.0, False)):
        runs = [run("mem-deque", rate=1_000), run("hivewire memory", rate=rate)]
        (floor,) = [verdict for verdict in judge(medians(runs)) if verdict.name.startswith("P5")]
        assert floor.is_met is is_met


def test_one_lost_message_in_one_round_fails_but_not_that_of_a_reference() -> None:
    runs = [run("hivewire memory", rate=10), run("hivewire memory", rate=10, lost=1), run("mem-deque", rate=1, lost=9)]
    (verdict,) = nothing_lost(runs)
    assert not verdict.is_met
    assert verdict.measured == "1 lost, 0 doubled of 2,000"
    assert nothing_lost(runs[2:]) == []


def test_the_table_and_the_page_hold_everything_and_the_page_loads_nothing() -> None:
    runs = [run("mem-deque", rate=1_000), run("asyncio.Queue", rate=900), run("hivewire memory", rate=500)]
    made = report(runs, Verdict("a <promise>", "kept & counted", True))
    text, html, svg = table(made), page(made), picture(made)
    assert "PASS  P5 W2: hivewire memory >= 0.45 x mem-deque: 0.50 x by rate" in text
    assert re.search(r"W2   hivewire memory +500 +2000\.00 +2\.00 ", text)
    assert "A &lt;CPU&gt;" in html
    assert "a &lt;promise&gt;" in html
    assert html.count("<svg") == svg.count("<svg") == 1
    assert html.count("<rect") == svg.count("<rect") - 1 == 3
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html + svg.replace("http://www.w3.org/2000/svg", ""))


def test_a_ceiling_is_a_multiple_of_the_reference() -> None:
    for cpu_us, is_met in ((20.0, True), (20.1, False)):
        runs = [run("redis-autopipe", rate=1e5), run("hivewire redis", rate=1e6 / cpu_us)]
        (ceiling,) = [verdict for verdict in judge(medians(runs)) if "client CPU" in verdict.name]
        assert ceiling.is_met is is_met


def test_idle_agents_are_held_to_sixty_megabytes_in_ten_thousand() -> None:
    for mb, is_met in ((30.0, True), (30.1, False)):
        made = report([], idle=(Idle(backend="memory", agents=5_000, mb=mb, cpu_percent=0.1),))
        assert made.is_good is is_met


def test_what_failed_is_told_and_the_report_is_not_good() -> None:
    made = make_report("", "", 1, MACHINE, Runs(failures=[Failure("mem-deque", "W1", "boom")], rounds=1))
    assert not made.is_good
    assert "FAIL  W1 mem-deque: boom" in table(made)


def test_a_baseline_is_kept_extended_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    runs = [run("mem-deque", rate=1_000), run("hivewire memory", rate=500)]
    baseline.save(report(runs), path)
    baseline.save(report([run("mem-deque", "W1", rate=300), run("hivewire memory", "W1", rate=100)]), path)
    known = baseline.load(path)
    assert known.ratios == {"W1 hivewire memory": 3.0, "W2 hivewire memory": 2.0}
    for ratio, is_met in ((2.4, True), (2.41, False), (0.1, True)):
        (verdict,) = baseline.compare({"W2 hivewire memory": ratio, "W4 hivewire memory": 99.0}, known, 0.2)
        assert verdict.is_met is is_met
    path.write_text("{}")
    with pytest.raises(SettingsError, match="not a baseline"):
        baseline.load(path)
    with pytest.raises(SettingsError, match="--save"):
        baseline.load(tmp_path / "none.json")


def test_a_run_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def one(module: str, address: str, *rest: str) -> bytes:
        asked.append(address)
        if address == "bad":
            raise ChildFailed("boom")
        return msgspec.json.encode(run("good", rate=1))

    monkeypatch.setattr(rounds, "child", one)
    plan = [Entry("memory", "bad", "W1", 1), Entry("sqlite", "good", "W1", 1)]
    runs = run_rounds(plan, {"bad": "bad", "good": "good"}, rounds=2)
    assert asked == ["bad", "good", "good", "bad"]  # every second round backwards
    assert [figures.backend for figures in runs.figures] == ["sqlite", "sqlite"]
    assert [failure.text for failure in runs.failures] == ["boom", "boom"]


def test_no_round_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def one(*arguments: str) -> bytes:
        nonlocal now
        now += 4.0
        raise ChildFailed("it only takes time")

    monkeypatch.setattr(rounds, "child", one)
    monkeypatch.setattr("hivewire.bench.rounds.time.monotonic", lambda: now)
    assert run_rounds([Entry("memory", "a", "W1", 1)], {"a": "a"}, rounds=9, within_s=14).rounds == 3


def test_a_child_that_fails_is_told_by_its_last_words() -> None:
    with pytest.raises(ChildFailed, match=r"No module named hivewire\.bench\.nothing \(exit code 1\)"):
        child("hivewire.bench.nothing")
