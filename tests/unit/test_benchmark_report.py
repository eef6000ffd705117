"""The benchmark's own arithmetic: medians, floors, losses, and a page that needs nothing from outside."""

from __future__ import annotations

import re

from benchmarks.machine import Machine
from benchmarks.plot import page
from benchmarks.promises import Proof
from benchmarks.report import Report, judge, medians, table
from benchmarks.workload import Figures

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
        peer=peer, workload=workload, count=1_000, rate=rate, cpu_us=1e6 / rate, p50_ms=1, p99_ms=2,
        lost=lost, duplicates=duplicates, load=1, rss_mb=30,
    )  # fmt: skip


def report(runs: list[Figures], proofs: list[Proof]) -> Report:
    middle = medians(runs)
    return Report(
        command="python -m benchmarks", started_at="2026-01-01", seconds=1, machine=MACHINE, load_after=(1, 1, 1),
        medians=middle, verdicts=judge(middle, runs, proofs), proofs=proofs, runs=runs,
    )  # fmt: skip


def test_the_median_of_rates_and_the_sum_of_losses() -> None:
    runs = [run("a", rate=rate, lost=lost) for rate, lost in ((10, 0), (1_000, 1), (20, 0))]
    (middle,) = medians(runs)
    assert (middle.rate, middle.lost) == (20, 1)


def test_a_floor_holds_at_its_share_and_not_below() -> None:
    for rate, is_met in ((450.0, True), (449.0, False)):
        runs = [run("mem-deque", rate=1_000), run("hivewire memory", rate=rate)]
        (floor,) = [verdict for verdict in judge(medians(runs), runs, []) if verdict.name.startswith("P5")]
        assert floor.is_met is is_met


def test_one_lost_message_in_one_round_fails() -> None:
    runs = [run("hivewire memory", rate=10), run("hivewire memory", rate=10, lost=1), run("hivewire memory", rate=10)]
    (verdict,) = [verdict for verdict in judge(medians(runs), runs, []) if verdict.name.startswith("P8")]
    assert not verdict.is_met
    assert "1 lost" in verdict.measured


def test_the_table_and_the_page_hold_everything_and_the_page_loads_nothing() -> None:
    runs = [run("mem-deque", rate=1_000), run("asyncio.Queue", rate=900), run("hivewire memory", rate=500)]
    made = report(runs, [Proof("a <promise>", "kept & counted", True)])
    text, html = table(made), page(made)
    assert "PASS  P5 W2: hivewire memory >= 0.45 x mem-deque: 0.50 x by rate" in text
    assert "A &lt;CPU&gt;" in html
    assert "a &lt;promise&gt;" in html
    assert html.count("<svg") == 1
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html)


def test_a_ceiling_is_a_multiple_of_the_reference() -> None:
    for cpu_us, is_met in ((20.0, True), (20.1, False)):
        runs = [run("redis-autopipe", rate=1e5), run("hivewire redis", rate=1e6 / cpu_us)]
        (ceiling,) = [verdict for verdict in judge(medians(runs), runs, []) if "client CPU" in verdict.name]
        assert ceiling.is_met is is_met
