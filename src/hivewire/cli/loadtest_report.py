"""The report of a load test: one HTML file with charts, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from hivewire.cli.loadtest import verdict

if TYPE_CHECKING:
    from hivewire.cli.loadtest_run import Plan
    from hivewire.cli.loadtest_tally import Tally
    from hivewire.rules.histogram import Histogram

_WIDTH: Final = 860
_HEIGHT: Final = 300
_LEFT: Final = 70
_BOTTOM: Final = 40
_TOP: Final = 30
_RIGHT: Final = 20
_NINES: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #66717f; --line: #d9dee5; --page: #fff; --good: #14804a;
  --bad: #b3261e; --a: #2563c9; --b: #b45309; --c: #7a3ea8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b3; --line: #36404c; --page: #14191f;
  --good: #4cc38a; --bad: #ff7b72; --a: #7aa9ff; --b: #f0a35e; --c: #c79bf2; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 900px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; font-weight: normal; }
td { font-variant-numeric: tabular-nums; } th { color: var(--soft); } tr { border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } svg { width: 100%; min-width: 40rem; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); }
path { fill: none; stroke-width: 2; } code { font-size: 13px; }
"""

Points = Sequence[tuple[float, float]]
Ticks = Sequence[tuple[float, str]]


def html(result: dict[str, Any], tally: Tally, plan: Plan) -> str:
    """The whole page."""
    said = "".join(verdict(result))
    facts = "; ".join(
        [
            f"{result['backend']}, durability {result['durability']}",
            f"{plan.rate:g} messages a second for {plan.duration_s:g} s",
            f"{plan.workers} handlers in {_processes(result['processes'])}, {plan.keys} keys",
            f"{result['machine']}, Python {result['python']}, {result['ended_at']}",
        ]
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Hivewire load test</title><style>{_STYLE}</style></head><body>
<h1>Load test: <span class="{"good" if result["ok"] else "bad"}">{said[0].upper()}{said[1:]}</span></h1>
<p class="soft">{escape(facts)}</p>
{_table(result)}
<h2>Latency by percentile</h2>
<p class="soft">Milliseconds from when a message was due to be sent until its handler started.</p>
{_percentiles(tally.latency_us)}
<h2>Latency over time</h2>
<p class="soft">By the second in which the message was due: <span style="color:var(--a)">p50</span>,
<span style="color:var(--b)">p99</span>, <span style="color:var(--c)">max</span>, in milliseconds.</p>
{_over_time(tally)}
<h2>Handled a second</h2>
{_throughput(tally)}
</body></html>
"""


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def _table(result: Mapping[str, Any]) -> str:
    names = (
        "sent",
        "confirmed",
        "handled",
        "lost",
        "duplicates",
        "out_of_order",
        "dead",
        "unfinished",
        "failed",
        "killed",
    )
    rows = [(name.replace("_", " "), f"{result[name]:,}") for name in names]
    rows.append(("throughput", f"{result['throughput']:,.0f} a second"))
    rows += [(f"latency {name}", f"{value:,.1f} ms") for name, value in result["latency_ms"].items()]
    rows += [("CPU time", f"{result['cpu_s']:.1f} s"), ("memory", f"{result['rss_mb']:.0f} MB")]
    return "<table>" + "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows) + "</table>"


def _percentiles(latency_us: Histogram) -> str:
    if not latency_us.count:
        return "<p>Nothing was handled.</p>"
    last = math.log10(latency_us.count)
    points = [
        (min(-math.log10(max(1 - upto / latency_us.count, 1e-12)), last), value / 1000)
        for value, upto in latency_us.steps()
    ]
    ticks = [(-math.log10(1 - nine / 100), f"{nine:g}%") for nine in _NINES if -math.log10(1 - nine / 100) <= last]
    return _chart([("a", points)], ticks, log=True)


def _over_time(tally: Tally) -> str:
    seconds = {at: second.latency_us for at, second in sorted(tally.seconds.items()) if second.latency_us.count}
    lines: list[tuple[str, Points]] = [
        (kind, [(at, found.percentile(percent) / 1000) for at, found in seconds.items()])
        for kind, percent in (("a", 50), ("b", 99), ("c", 100))
    ]
    return _chart(lines, _second_ticks(seconds), log=True)


def _throughput(tally: Tally) -> str:
    points = [(float(at), float(second.handled[0])) for at, second in sorted(tally.seconds.items())]
    return _chart([("a", points)], _second_ticks(tally.seconds), log=False)


def _round(least: float) -> float:
    """A number with one or two digits, not below this one: a distance between lines that can be read.

    >>> _round(143.5), _round(0.4)
    (150.0, 0.4)
    """
    unit = 10.0 ** math.floor(math.log10(least))
    return next(step * unit for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * unit >= least)


def _second_ticks(seconds: Iterable[int]) -> Ticks:
    last = max(seconds, default=0)
    step = max(1, math.ceil(last / 10))
    return [(at, f"{at} s") for at in range(0, last + 1, step)]


def _chart(lines: Sequence[tuple[str, Points]], ticks: Ticks, *, log: bool) -> str:
    """Lines over common axes; the upright one is logarithmic if asked, else from 0."""
    values = [y for _, points in lines for _, y in points]
    most_x = max([x for _, points in lines for x, _ in points] + [x for x, _ in ticks] + [1e-9])
    low, high = 0.0, 4 * _round(max([*values, 1]) * 1.05 / 4)
    if log:
        low = float(math.floor(math.log10(max(min(values, default=1), 0.001))))
        high = max(math.ceil(math.log10(max([*values, 0.001]))), low + 1)
        marks = [(10.0**power, f"{10.0**power:g}") for power in range(int(low), int(high) + 1)]
    else:
        marks = [(high * part / 4, f"{high * part / 4:,.0f}") for part in range(5)]

    def x_at(x: float) -> float:
        return _LEFT + x / most_x * (_WIDTH - _LEFT - _RIGHT)

    def y_at(y: float) -> float:
        part = (math.log10(max(y, 0.001)) if log else y) - low
        return _HEIGHT - _BOTTOM - part / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    for value, text in marks:
        y = y_at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in ticks:
        parts.append(f'<text x="{x_at(value):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{text}</text>')
    for kind, points in lines:
        path = " L".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
        parts.append(f'<path class="{kind}" d="M{path}"/>')
    return "".join(parts) + "</svg></div>"
