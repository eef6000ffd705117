"""The comparison as one self-contained page: a panel a workload, bars of rate and of CPU per message."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Final

from benchmarks.plan import REDIS_PEERS
from benchmarks.report import Report
from benchmarks.workload import Figures

ROW, BAR, LABEL, WIDTH = 30, 16, 190, 900
COLOURS: Final = {"hivewire": "#0b7285", "raw": "#adb5bd"}
TITLES: Final = {
    "W1": "W1: one producer, each send awaited",
    "W2": "W2: one producer, all the batching there is",
    "W3a": "W3a: 10 producers, each awaits its own sends",
    "W3b": "W3b: 100 producers, each awaits its own sends",
    "W4": "W4: 1,000 a second, whether or not those before are stored",
    "W5": "W5: 100 queues, all the batching there is",
    "W6": "W6: requests, one after another",
}
STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #212529; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .2rem } svg { width: 100%; height: auto }
text { font: 13px system-ui, sans-serif; fill: #212529 } .soft { fill: #6c757d } p, td { overflow-wrap: anywhere }
table { border-collapse: collapse }
td { padding: .2rem .8rem .2rem 0; vertical-align: top; border-top: 1px solid #e9ecef }
.pass, .fail { white-space: nowrap } .pass { color: #2b8a3e } .fail { color: #c92a2a; font-weight: 600 }
"""


def _panel(rows: list[Figures]) -> str:
    fastest = max(row.rate for row in rows)
    room = WIDTH - LABEL - 340
    parts = [f'<svg viewBox="0 0 {WIDTH} {ROW * len(rows)}" role="img" aria-label="messages per second">']
    for index, row in enumerate(sorted(rows, key=lambda row: -row.rate)):
        top, length = index * ROW, max(row.rate / fastest * room, 1)
        colour = COLOURS["hivewire" if row.peer.startswith("hivewire") else "raw"]
        parts.append(
            f'<text x="0" y="{top + BAR}">{escape(row.peer)}</text>'
            f'<rect x="{LABEL}" y="{top + 3}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>'
            f'<text x="{LABEL + length + 8:.1f}" y="{top + BAR}">{row.rate:,.0f}/s'
            f'<tspan class="soft" dx="8">{_cost(row)}, p99 {row.p99_ms:.3g} ms</tspan></text>'
        )
    return "".join([*parts, "</svg>"])


def _cost(row: Figures) -> str:
    there = f" + {row.server_us:.1f} us server" if row.server_us else ""
    return f"{row.cpu_us:.1f} us CPU{there}"


def page(report: Report) -> str:
    panels = []
    rows = sorted(report.medians, key=lambda row: (row.workload, _store(row)))
    for (workload, store), group in groupby(rows, key=lambda row: (row.workload, _store(row))):
        panels.append(f"<h2>{TITLES[workload]}, {store}</h2>{_panel(list(group))}")
    verdicts = "".join(
        f'<tr><td class="{"pass" if verdict.is_met else "fail"}">{"PASS" if verdict.is_met else "FAIL"}</td>'
        f"<td>{escape(verdict.name)}</td><td>{escape(verdict.measured)}</td></tr>"
        for verdict in report.verdicts
    )
    rounds = max(
        (sum(run.peer == row.peer and run.workload == row.workload for run in report.runs) for row in rows), default=0
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Hivewire beside raw references</title><style>{STYLE}</style><h1>Hivewire beside raw references</h1>"
        f"<p>Messages handled and acknowledged per second; producer and consumer in one process; median of {rounds} "
        f"alternating rounds, a process a run. The references have no engine: no retry, no leases, no order under "
        f"failure, no dead letters.</p>"
        f"<p>{escape(str(report.machine))}. Load {report.machine.load[0]:.2f} before, {report.load_after[0]:.2f} "
        f"after. <code>{escape(report.command)}</code>, {escape(report.started_at)}.</p>"
        f"{''.join(panels)}<h2>Floors and conditions</h2><table>{verdicts}</table></html>"
    )


def _store(row: Figures) -> str:
    if row.peer in ("mem-deque", "asyncio.Queue", "hivewire memory"):
        return "memory"
    return "Redis" if row.peer in (*REDIS_PEERS, "hivewire redis") else "SQLite"
