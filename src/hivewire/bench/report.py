"""From runs to medians, ratios and a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

from hivewire.bench.idle import Idle
from hivewire.bench.machine import Machine, load
from hivewire.bench.plan import REFERENCES
from hivewire.bench.rounds import Failure, Runs
from hivewire.bench.workload import Figures


class Verdict(msgspec.Struct):
    """One floor or condition, and whether it holds."""

    name: str
    measured: str
    is_met: bool


class Report(msgspec.Struct, kw_only=True):
    command: str
    started_at: str
    seconds: int
    rounds: int
    machine: Machine
    load_after: tuple[float, float, float]
    medians: list[Figures]
    ratios: dict[str, float]
    """Of each of our peers and workloads: CPU a message over that of the raw reference, median of the rounds."""
    idle: list[Idle]
    verdicts: list[Verdict]
    failures: list[Failure]
    runs: list[Figures]

    @property
    def is_good(self) -> bool:
        return not self.failures and all(verdict.is_met for verdict in self.verdicts)


IDLE_MB: Final = 60
_MEDIANS: Final = ("rate", "cpu_us", "server_us", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "load", "rss_mb")


def medians(runs: Sequence[Figures]) -> list[Figures]:
    """Median of each figure over the rounds; losses and duplicates are summed, so that none hides."""
    grouped: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for run in runs:
        grouped[run.workload, run.peer].append(run)
    return [
        Figures(
            backend=group[0].backend,
            peer=peer,
            workload=workload,
            count=group[0].count,
            lost=sum(run.lost for run in group),
            duplicates=sum(run.duplicates for run in group),
            **{name: median([getattr(run, name) for run in group]) for name in _MEDIANS},
        )
        for (workload, peer), group in sorted(grouped.items(), key=lambda item: item[0][0])
    ]


def pair_name(peer: str, workload: str) -> str:
    return f"{workload} {peer}"


def ratios(runs: Sequence[Figures]) -> dict[str, float]:
    """CPU a message over that of the raw reference in the same round; the median of the rounds."""
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        costs[run.peer, run.workload].append(run.cpu_us)
    return {
        pair_name(peer, workload): median(
            mine / raw for mine, raw in zip(ours, costs[reference, workload], strict=False)
        )
        for (peer, workload), ours in list(costs.items())
        if (reference := REFERENCES.get(peer)) is not None and costs.get((reference, workload))
    }


def nothing_lost(runs: Sequence[Figures]) -> list[Verdict]:
    """Of our peers alone: the references promise nothing."""
    ours = [run for run in runs if run.peer.startswith("hivewire")]
    if not ours:
        return []
    lost, doubled, sent = (sum(getattr(run, name) for run in ours) for name in ("lost", "duplicates", "count"))
    measured = f"{lost} lost, {doubled} doubled of {sent:,}"
    return [Verdict("P8: nothing lost or doubled in any run", measured, not lost and not doubled)]


def table(report: Report) -> str:
    return "\n".join(
        [
            f"machine: {report.machine}",
            f"load: {report.machine.load[0]:.2f} before, {report.load_after[0]:.2f} after",
            f"command: {report.command}   ({report.started_at}, {report.seconds} s, {report.rounds} rounds)",
            *_figures(report.medians, report.ratios),
            "",
            *[idle.text for idle in report.idle],
            *[f"FAIL  {failure.workload} {failure.peer}: {failure.text}" for failure in report.failures],
            *[f"{'PASS' if one.is_met else 'FAIL'}  {one.name}: {one.measured}" for one in report.verdicts],
        ]
    )


def _figures(rows: Sequence[Figures], over_raw: Mapping[str, float]) -> list[str]:
    head = (
        f"{'':4} {'peer':24} {'messages/s':>12} {'CPU us':>8} {'x raw':>6} {'server':>8} {'p50 ms':>9} {'p99 ms':>9}"
        f" {'p99.9 ms':>9} {'RSS MB':>7} {'lost':>5} {'dup':>5}"
    )
    lines, last = [], ""
    for row in rows:
        if row.workload != last:
            lines += ["", head] if not last else [""]
        last = row.workload
        ratio = over_raw.get(pair_name(row.peer, row.workload))
        lines.append(
            f"{row.workload:4} {row.peer:24} {row.rate:>12,.0f} {row.cpu_us:>8.2f}"
            f" {'' if ratio is None else f'{ratio:.2f}':>6} {row.server_us:>8.2f} {row.p50_ms:>9.3f} {row.p99_ms:>9.3f}"
            f" {row.p999_ms:>9.3f} {row.rss_mb:>7.0f} {row.lost:>5} {row.duplicates:>5}"
        )
    return lines


def make_report(
    command: str, started_at: str, seconds: float, before: Machine, runs: Runs, *, idle: Sequence[Idle] = ()
) -> Report:
    """Without verdicts but those that hold for any run."""
    return Report(
        command=command,
        started_at=started_at,
        seconds=round(seconds),
        rounds=runs.rounds,
        machine=before,
        load_after=load(),
        medians=medians(runs.figures),
        ratios=ratios(runs.figures),
        idle=list(idle),
        verdicts=nothing_lost(runs.figures) + [idle_verdict(one) for one in idle],
        failures=runs.failures,
        runs=runs.figures,
    )


def idle_verdict(idle: Idle) -> Verdict:
    return Verdict(f"{idle.backend}: 10,000 idle agents <= {IDLE_MB} MB", idle.text, idle.mb_per_10_000 <= IDLE_MB)
