"""From runs to medians, floors and a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal, NamedTuple

import msgspec

from benchmarks.machine import Machine
from benchmarks.plan import FRAMEWORKS
from benchmarks.promises import Proof
from benchmarks.workload import Figures


class Verdict(msgspec.Struct):
    """One floor or condition, and whether it holds."""

    name: str
    measured: str
    is_met: bool


class Report(msgspec.Struct, kw_only=True):
    command: str
    started_at: str
    seconds: int
    machine: Machine
    load_after: tuple[float, float, float]
    medians: list[Figures]
    verdicts: list[Verdict]
    proofs: list[Proof]
    runs: list[Figures]


class Floor(NamedTuple):
    name: str
    workload: str
    peer: str
    reference: str
    share: float


class Ceiling(NamedTuple):
    """At most so many times what the reference has, and so much more."""

    name: str
    workload: str
    figure: Literal["cpu_us", "p50_ms", "p99_ms"]
    times: float
    plus: float = 0.0
    peer: str = "hivewire redis"
    reference: str = "redis-autopipe"


FLOORS: Final = (
    Floor("P5", "W1", "hivewire memory", "asyncio.Queue", 0.70),
    Floor("P5", "W2", "hivewire memory", "mem-deque", 0.45),
    Floor("P5", "W3a", "hivewire memory", "mem-deque", 0.45),
    Floor("P5", "W3b", "hivewire memory", "mem-deque", 0.45),
    Floor("P6", "W1", "hivewire sqlite", "sqlite-wal", 0.75),
    Floor("P6", "W2", "hivewire sqlite", "sqlite-wal", 0.65),
    Floor("P6", "W1", "hivewire sqlite NORMAL", "sqlite-wal NORMAL", 0.75),
    Floor("P6", "W2", "hivewire sqlite NORMAL", "sqlite-wal NORMAL", 0.65),
    Floor("P6", "W2", "hivewire sqlite", "litequeue", 10),
    Floor("P6", "W2", "hivewire sqlite", "persist-queue", 25),
    *(Floor("P1", workload, "hivewire redis", "redis-autopipe", 0.60) for workload in ("W2", "W3a", "W3b", "W5")),
    Floor("P2", "W1", "hivewire redis", "redis-autopipe", 0.85),
    *(Floor("P7", "W3b", "hivewire redis", peer, 10) for peer in FRAMEWORKS),
)
CEILINGS: Final = (
    *(Ceiling("P1", workload, "cpu_us", 2) for workload in ("W2", "W3a", "W3b", "W5")),
    Ceiling("P2", "W4", "p50_ms", 1.5),
    Ceiling("P2", "W4", "p99_ms", 1.5, 2.0),
    Ceiling("P2", "W6", "p50_ms", 1.5),
)
CONDITIONS: Final = (
    Floor("condition", "W1", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W2", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W3a", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W3b", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W2", "sqlite-wal", "litequeue", 15),
    Floor("condition", "W3b", "redis-autopipe", "redis-py asyncio", 4),
)


def medians(runs: Sequence[Figures]) -> list[Figures]:
    """Median of each figure over the rounds; losses and duplicates are summed, so that none hides."""
    grouped: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for run in runs:
        grouped[run.workload, run.peer].append(run)
    return [
        Figures(
            peer=peer,
            workload=workload,
            count=group[0].count,
            rate=median(run.rate for run in group),
            cpu_us=median(run.cpu_us for run in group),
            server_us=median(run.server_us for run in group),
            p50_ms=median(run.p50_ms for run in group),
            p99_ms=median(run.p99_ms for run in group),
            lost=sum(run.lost for run in group),
            duplicates=sum(run.duplicates for run in group),
            load=median(run.load for run in group),
            rss_mb=median(run.rss_mb for run in group),
        )
        for (workload, peer), group in sorted(grouped.items(), key=lambda item: item[0][0])
    ]


def judge(of: Sequence[Figures], runs: Sequence[Figures], proofs: Sequence[Proof]) -> list[Verdict]:
    by_key = {(figures.workload, figures.peer): figures for figures in of}
    verdicts = []
    for floor in (*CONDITIONS, *FLOORS):
        mine, other = by_key.get((floor.workload, floor.peer)), by_key.get((floor.workload, floor.reference))
        if mine is None or other is None:
            continue
        ratio, cpu = mine.rate / other.rate, other.cpu_us / mine.cpu_us
        verdicts.append(
            Verdict(
                f"{floor.name} {floor.workload}: {floor.peer} >= {floor.share:g} x {floor.reference}",
                f"{ratio:.2f} x by rate, {cpu:.2f} x by CPU",
                ratio >= floor.share,
            )
        )
    for ceiling in CEILINGS:
        mine, other = by_key.get((ceiling.workload, ceiling.peer)), by_key.get((ceiling.workload, ceiling.reference))
        if mine is not None and other is not None:
            verdicts.append(_under(ceiling, getattr(mine, ceiling.figure), getattr(other, ceiling.figure)))
    if runs:
        ours = [run for run in runs if run.peer.startswith("hivewire")]
        lost, doubled = sum(run.lost for run in ours), sum(run.duplicates for run in ours)
        sent = sum(run.count for run in ours)
        verdicts.append(
            Verdict(
                "P8: nothing lost or doubled in any run",
                f"{lost} lost, {doubled} doubled of {sent:,}",
                not lost and not doubled,
            )
        )
    verdicts += [Verdict(proof.name, proof.text, proof.is_met) for proof in proofs]
    return verdicts


def _under(ceiling: Ceiling, mine: float, other: float) -> Verdict:
    what, unit = {"cpu_us": ("client CPU", "us"), "p50_ms": ("p50", "ms"), "p99_ms": ("p99", "ms")}[ceiling.figure]
    plus = f" + {ceiling.plus:g} {unit}" if ceiling.plus else ""
    return Verdict(
        f"{ceiling.name} {ceiling.workload}: {what} of {ceiling.peer} <= {ceiling.times:g} x {ceiling.reference}{plus}",
        f"{mine / other:.2f} x, {mine:.3g} {unit} against {other:.3g}",
        mine <= ceiling.times * other + ceiling.plus,
    )


def table(report: Report) -> str:
    lines = [
        f"machine: {report.machine}",
        f"load: {report.machine.load[0]:.2f} before, {report.load_after[0]:.2f} after",
        f"command: {report.command}   ({report.started_at}, {report.seconds} s)",
        "",
        (
            f"{'':4} {'peer':24} {'messages/s':>12} {'CPU us':>8} {'server':>8} {'p50 ms':>9}"
            f" {'p99 ms':>9} {'RSS MB':>7} {'lost':>5} {'dup':>5}"
        ),
    ]
    last = ""
    for row in report.medians:
        if row.workload != last and last:
            lines.append("")
        last = row.workload
        lines.append(
            f"{row.workload:4} {row.peer:24} {row.rate:>12,.0f} {row.cpu_us:>8.2f} {row.server_us:>8.2f}"
            f" {row.p50_ms:>9.3f} {row.p99_ms:>9.3f} {row.rss_mb:>7.0f} {row.lost:>5} {row.duplicates:>5}"
        )
    lines.append("")
    lines += [
        f"{'PASS' if verdict.is_met else 'FAIL'}  {verdict.name}: {verdict.measured}" for verdict in report.verdicts
    ]
    return "\n".join(lines)
