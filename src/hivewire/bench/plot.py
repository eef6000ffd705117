"""The comparison as a picture and as one self-contained page: a panel a workload and store."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Final

from hivewire.bench.report import Report
from hivewire.bench.workload import WORKLOADS, Figures

ROW, BAR, LABEL, WIDTH, TITLE = 30, 16, 190, 900, 40
COLOURS: Final = {"hivewire": "#0b7285", "raw": "#adb5bd"}
STORES: Final = {"memory": "memory", "sqlite": "SQLite", "redis": "Redis", "kafka": "Kafka"}
TEXT_STYLE: Final = (
    "text { font: 13px system-ui, sans-serif; fill: #212529 } .soft { fill: #6c757d } .title { font-weight: 600 }"
)
STYLE: Final = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #212529; background: #fff; color-scheme: light dark }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .2rem }}
.wide {{ overflow-x: auto }} svg {{ width: 100%; min-width: 44rem; height: auto; display: block }}
{TEXT_STYLE} p, td {{ overflow-wrap: anywhere }} table {{ border-collapse: collapse }}
td {{ padding: .2rem .8rem .2rem 0; vertical-align: top; border-top: 1px solid #e9ecef }}
.pass, .fail {{ white-space: nowrap }} .pass {{ color: #2b8a3e }} .fail {{ color: #c92a2a; font-weight: 600 }}
@media (prefers-color-scheme: dark) {{
body {{ color: #e6eaf0; background: #14191f }} text {{ fill: #e6eaf0 }} .soft {{ fill: #9aa5b3 }}
rect.raw {{ fill: #5c6875 }} rect.hivewire {{ fill: #22b8cf }} td {{ border-color: #36404c }}
.pass {{ color: #4cc38a }} .fail {{ color: #ff7b72 }} }}
"""

_HOW: Final = dict.fromkeys(("W4", "W6"), " (median latency: the shorter the better)")
"""Of the workloads that are told by their latency."""

Panel = tuple[str, list[Figures]]


def panels(rows: Sequence[Figures]) -> list[Panel]:
    """Title and peers of each workload on each store."""
    ordered = sorted(rows, key=lambda row: (list(STORES).index(row.backend), row.workload))
    return [
        (f"{STORES[backend]}, {workload}: {WORKLOADS[workload]}{_HOW.get(workload, '')}", list(group))
        for (backend, workload), group in groupby(ordered, key=lambda row: (row.backend, row.workload))
    ]


def bars(rows: Sequence[Figures], top: int = 0) -> str:
    """One bar a peer. By rate; of workloads whose rate is given, and of requests, by the median latency."""
    by_latency = rows[0].workload in _HOW
    lengths = {row.peer: row.p50_ms if by_latency else row.rate for row in rows}
    longest, room = max(lengths.values()) or 1.0, WIDTH - LABEL - 380
    parts = []
    for index, row in enumerate(sorted(rows, key=lambda row: lengths[row.peer], reverse=not by_latency)):
        y, length = top + index * ROW, max(lengths[row.peer] / longest * room, 1)
        kind = "hivewire" if row.peer.startswith("hivewire") else "raw"
        main, rest = f"{row.rate:,.0f}/s", f"{_cost(row)}, p99 {row.p99_ms:.3g} ms"
        if by_latency:
            main, rest = f"p50 {row.p50_ms:.3g} ms", f"p99 {row.p99_ms:.3g}, {row.rate:,.0f}/s, {_cost(row)}"
        parts.append(
            f'<text x="0" y="{y + BAR}">{escape(row.peer)}</text>'
            f'<rect x="{LABEL}" y="{y + 3}" width="{length:.1f}" height="{BAR}" rx="2" '
            f'class="{kind}" fill="{COLOURS[kind]}"/>'
            f'<text x="{LABEL + length + 8:.1f}" y="{y + BAR}">{main}<tspan class="soft" dx="8">{rest}</tspan></text>'
        )
    return "".join(parts)


def _cost(row: Figures) -> str:
    there = f" + {row.server_us:.1f} us server" if row.server_us else ""
    return f"{row.cpu_us:.1f} us CPU{there}"


def picture(report: Report) -> str:
    """All panels in one SVG."""
    parts, y = [], 10
    for title, rows in panels(report.medians):
        parts += [f'<text class="title" x="0" y="{y + 20}">{escape(title)}</text>', bars(rows, y + TITLE - 8)]
        y += TITLE + ROW * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {WIDTH + 20} {y + 10}" role="img">'
        f"<style>{TEXT_STYLE}</style>"
        f'<rect x="-10" width="{WIDTH + 20}" height="{y + 10}" fill="#fff"/>{"".join(parts)}</svg>'
    )


def page(report: Report) -> str:
    """Everything in one file that loads nothing."""
    drawn = "".join(
        f'<h2>{escape(title)}</h2><div class="wide">'
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(rows)}" role="img">{bars(rows)}</svg></div>'
        for title, rows in panels(report.medians)
    )
    verdicts = "".join(
        f'<tr><td class="{"pass" if verdict.is_met else "fail"}">{"PASS" if verdict.is_met else "FAIL"}</td>'
        f"<td>{escape(verdict.name)}</td><td>{escape(verdict.measured)}</td></tr>"
        for verdict in report.verdicts
    )
    over_raw = "".join(f"<tr><td>{escape(name)}</td><td>{ratio:.2f}</td></tr>" for name, ratio in report.ratios.items())
    failures = "".join(
        f'<p class="fail">{escape(f"{one.workload} {one.peer}: {one.text}")}</p>' for one in report.failures
    )
    idle = "".join(f"<p>{escape(one.text)}</p>" for one in report.idle)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Hivewire beside raw loops</title><style>{STYLE}</style><h1>Hivewire beside raw loops</h1>"
        f"<p>Messages handled and acknowledged per second, and latency; median of {report.rounds} alternating rounds, "
        f"a process a run; with a server the consumer has a process of its own. The raw loops have no engine: no "
        f"retry, no leases, no order under failure, no dead letters.</p>"
        f"<p>{escape(str(report.machine))}. Load {report.machine.load[0]:.2f} before, {report.load_after[0]:.2f} "
        f"after. <code>{escape(report.command)}</code>, {escape(report.started_at)}.</p>"
        f"{failures}{drawn}<h2>CPU a message over the raw loop</h2><table>{over_raw}</table>{idle}"
        f"<h2>Floors and conditions</h2><table>{verdicts}</table></html>"
    )
