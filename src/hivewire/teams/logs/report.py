"""The report: one text in Markdown, one page in HTML. Both are functions of the findings alone.

Log lines are hostile text: whatever comes from a file goes through `html_text` or `markdown_code`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Final

from hivewire.teams.logs import charts
from hivewire.teams.logs.bursts import AROUND, LEAST_EXCESS, LEAST_SCORE, Burst
from hivewire.teams.logs.findings import Findings
from hivewire.teams.logs.masking import SEVERITIES
from hivewire.teams.logs.mining import GRAVE, TemplateCount

_MOST_TEMPLATES: Final = 25
_MOST_GRAVE: Final = 10
_MOST_SKIPPED: Final = 200
_LONGEST_TEXT: Final = 300
_LONGEST_PATH: Final = 50_000  # never cut: two paths must not look alike
# what could act on a terminal or turn text around: controls, bidirectional marks, lone surrogates
_UNSEEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")

LABELS: Final = {
    "lines": "Lines read",
    "bytes": "Bytes read",
    "files": "Files read",
    "skipped": "Files skipped",
    "pieces": "Pieces",
    "templates": "Templates",
    "grave": "Error and fatal lines",
    "bursts": "Bursts",
    "untimed": "Lines without a time",
    "undecodable": "Lines that are not UTF-8",
} | {f"severity {name}": f"Severity {name}" for name in SEVERITIES}
NOTES: Final = f"""\
Times without a zone are taken as UTC; times without a year get the last year that does not put them after their file.
Lines without a time (stack traces, for example) count in totals and templates, not over time.
The level of a line is the one that its text names; a line that names none is “none”.
A template is a line with its numbers, times, addresses, paths, identifiers and quoted strings masked. It is a \
function of the line alone. Words that vary (user names, for example) make templates of their own.
Bursts: for each minute, x is its count, m the median of the {2 * AROUND + 1} minutes around it and MAD the median of \
|x - m| there; a minute with (x - m) / max(1.4826 MAD, √m, 1) ≥ {LEAST_SCORE:g} and x ≥ m + {LEAST_EXCESS} belongs to \
a burst; minutes at most 2 apart are one. Errors and other lines are looked at apart. What lasts for more than half an \
hour is not seen.
Every file was cut at line ends into pieces; their counts add up to the same totals for any cut.""".splitlines()


def visible(text: str, longest: int = _LONGEST_TEXT) -> str:
    """The text in one line, with nothing in it that acts instead of being seen."""
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", " "))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def visible_path(path: str) -> str:
    """As `visible`, but never two paths alike."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), path.replace("\\", "\\\\"))


def html_text(text: str, longest: int = _LONGEST_TEXT) -> str:
    return html.escape(visible(text, longest), quote=True)


def markdown_code(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A code span for a table cell: nothing in it is markup, no character ends it early."""
    text = visible(text, longest)
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    inner = text.replace("|", "\\|")
    return f"{fence} {inner} {fence}" if len(fence) > 1 or not inner.strip() else f"{fence}{inner}{fence}"


def markdown_path(path: str) -> str:
    return markdown_code(visible_path(path), _LONGEST_PATH)


def _html_path(path: str) -> str:
    return html_text(visible_path(path), _LONGEST_PATH)


def period(findings: Findings) -> str:
    """From when to when the lines are, in words."""
    first, last = findings.summary.first_at, findings.summary.last_at
    if first is None or last is None:
        return "no line carries a time"
    return f"{charts.clock(first // 60)}:{first % 60:02d} to {charts.clock(last // 60)}:{last % 60:02d} UTC"


def top_templates(findings: Findings) -> list[tuple[str, TemplateCount]]:
    """The most frequent first; the text decides among equals."""
    return sorted(findings.summary.templates.items(), key=lambda item: (-item[1].count, item[0]))


def grave_templates(findings: Findings) -> list[tuple[str, TemplateCount]]:
    return [item for item in top_templates(findings) if item[1].severity in GRAVE]


def burst_span(burst: Burst) -> str:
    return f"{charts.clock(burst.start)} to {charts.clock(burst.end + 1, brief=True)}"


def markdown(findings: Findings) -> str:
    """report.md"""
    facts = findings.facts()
    parts = ["# Log report", "", f"Period: {period(findings)}.", "", "## Totals", ""]
    totals = [(label, f"{facts[key]:,}") for key, label in LABELS.items() if key in facts]
    parts += _table(("what", "number"), totals, right=(1,))
    parts += ["## Bursts", "", *_markdown_bursts(findings)]
    errors = grave_templates(findings)
    if errors:
        parts += ["## Errors", "", *_markdown_templates(errors[:_MOST_GRAVE], facts["lines"])]
    parts += ["## Most frequent templates", ""]
    parts += _markdown_templates(top_templates(findings)[:_MOST_TEMPLATES], facts["lines"])
    parts += ["## Files read", "", _accounting(findings), ""]
    rows = [
        (markdown_path(a.path), f"{a.lines:,}", f"{a.size:,}", f"{a.pieces:,}", _state(a.gapless, a.unread))
        for a in findings.accounts
    ]
    parts += _table(("file", "lines", "bytes of text", "pieces", "accounted for"), rows, right=(1, 2, 3))
    if findings.inventory.skipped:
        parts += ["## Files skipped", ""]
        shown = findings.inventory.skipped[:_MOST_SKIPPED]
        parts += _table(("file", "reason"), [(markdown_path(s.path), markdown_code(s.reason)) for s in shown])
        parts += _more(len(findings.inventory.skipped) - len(shown), "skipped files")
    parts += ["## How to read this", ""] + [f"- {note}" for note in NOTES] + [""]
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, tuple(rule), *rows)] + [""]


def _more(left: int, what: str) -> list[str]:
    return [f"{left:,} more {what} are not listed here.", ""] if left > 0 else []


def _markdown_bursts(findings: Findings) -> list[str]:
    rows = [
        (
            *(str(n), burst_span(b), b.kind, f"{b.lines:,}", f"{b.peak:,}", f"{b.usual:g}", f"{b.score:.1f}"),
            markdown_code(b.template) if b.template else "",
        )
        for n, b in enumerate(findings.bursts, 1)
    ]
    if not rows:
        return ["None.", ""]
    head = ("no.", "when (UTC)", "of", "lines", "peak a minute", "usual a minute", "score", "mostly")
    return _table(head, rows, right=(0, 3, 4, 5, 6))


def _markdown_templates(found: list[tuple[str, TemplateCount]], lines: int) -> list[str]:
    rows = [
        (f"{t.count:,}", f"{t.count / max(1, lines):.1%}", t.severity, markdown_code(text or "(empty line)"))
        for text, t in found
    ]
    return _table(("lines", "share", "severity", "template"), rows, right=(0, 1))


def _accounting(findings: Findings) -> str:
    facts = findings.facts()
    sums = sum(account.lines for account in findings.accounts)
    by_template = sum(found.count for found in findings.summary.templates.values())
    text = (
        f"{facts['files']:,} files were read in {facts['pieces']:,} pieces; the lines of the pieces add up to "
        f"{sums:,}, the lines by template to {by_template:,}."
    )
    if findings.changed:
        text += f" {len(findings.changed):,} pieces changed before they could be read and are not counted."
    return text


def _state(gapless: bool, unread: int) -> str:
    if unread:
        return f"{unread:,} bytes changed, not read"
    return "every byte" if gapless else "no: pieces do not lie end to end"


def page(findings: Findings) -> str:
    """report.html: one file, no script, nothing loaded from anywhere."""
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    facts = findings.facts()
    return template.substitute(
        period=html_text(period(findings)),
        cards="".join(_card(key, facts[key]) for key in LABELS if key in facts and not key.startswith("severity ")),
        timeline=_timeline(findings),
        bursts=_page_bursts(findings),
        shares=_page_shares(findings, facts),
        errors=_page_templates(grave_templates(findings)[:_MOST_GRAVE]),
        templates=_page_templates(top_templates(findings)[:_MOST_TEMPLATES]),
        accounting=html_text(_accounting(findings), 2000),
        files=_page_files(findings),
        skipped=_page_skipped(findings),
        notes="".join(f"<li>{html_text(note, 2000)}</li>" for note in NOTES),
    )


def _fact(key: str, value: int) -> str:
    return f'<span data-fact="{html.escape(visible_path(key), quote=True)}">{value:,}</span>'


def _card(key: str, value: int) -> str:
    return f'<div class="card"><b>{_fact(key, value)}</b>{LABELS[key]}</div>'


def _timeline(findings: Findings) -> str:
    minutes = findings.summary.minutes
    window = charts.choose_window({minute: sum(counts.values()) for minute, counts in minutes.items()})
    if window is None:
        return "<p>No line carries a time.</p>"
    bars = charts.bins(minutes, window)
    everything = _plot(bars, window, findings, tuple(reversed(SEVERITIES)))
    grave = _plot(bars, window, findings, ("warning", "error", "fatal"))
    step = f"{window.step} minutes" if window.step > 1 else "minute"
    outside = f" {window.outside:,} lines from other times are not in the charts." if window.outside else ""
    span = f"{charts.clock(window.start)} to {charts.clock(window.end)} UTC, one bar per {step}.{outside}"
    told = f"<p class=small>{span} Numbers mark the bursts below.</p>"
    return f"<h3>All lines</h3>{everything}<h3>Warnings and errors</h3>{grave}{told}"


def _plot(bars: list[dict[str, int]], window: charts.Window, findings: Findings, names: tuple[str, ...]) -> str:
    top = charts.nice_top(max(sum(bar.get(name, 0) for name in names) for bar in bars) or 1)
    marks = "".join(
        f'<i class=mark style="left:{left:.3f}%;width:{width:.3f}%"><b>{number}</b></i>'
        for left, width, number in charts.burst_marks(findings.bursts, window)
    )
    ticks = "".join(f'<span style="left:{left:.3f}%">{text}</span>' for left, text in charts.ticks(window))
    return (
        f"<div class=plot><div class=y><span>{top:,}</span><span>{top / 2:,g}</span><span>0</span></div>"
        f"<div class=area>{charts.timeline(bars, window, names)}{marks}</div><div class=x>{ticks}</div></div>"
    )


def _page_bursts(findings: Findings) -> str:
    if not findings.bursts:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td class=r><b class=no>{n}</b><td class=when>{burst_span(b)}<td>{b.kind}"
        f"{_numbers(f'{b.lines:,}', f'{b.peak:,}', f'{b.usual:g}', f'{b.score:.1f}')}"
        f"<td>{f'<code>{html_text(b.template)}</code>' if b.template else ''}"
        for n, b in enumerate(findings.bursts, 1)
    )
    head = (
        "<th class=r>no.<th>when (UTC)<th>of<th class=r>lines<th class=r>peak a minute<th class=r>usual"
        "<th class=r>score<th>mostly"
    )
    return f"<div class=scroll><table><thead><tr>{head}<tbody>{rows}</table></div>"


def _numbers(*texts: str) -> str:
    return "".join(f"<td class=r>{text}" for text in texts)


def _page_shares(findings: Findings, facts: dict[str, int]) -> str:
    counts = findings.summary.severities
    total = sum(counts.values()) or 1
    legend = "".join(
        f'<li><i class="dot {name}"></i>{name} <b>{_fact(f"severity {name}", facts[f"severity {name}"])}</b> '
        f"<small>{counts[name] / total:.1%}</small>"
        for name in SEVERITIES
        if name in counts
    )
    return f"{charts.shares(counts)}<ul class=legend>{legend}</ul>"


def _page_templates(found: list[tuple[str, TemplateCount]]) -> str:
    if not found:
        return "<p>None.</p>"
    highest = found[0][1].count
    rows = "".join(
        f"<details><summary><span class=count>{t.count:,}</span><span class='tag {t.severity}'>{t.severity}</span>"
        f"<code>{html_text(text) or '(empty line)'}</code>{charts.bar(t.count, highest, t.severity)}</summary>"
        f"<p class=small>First in <code>{_html_path(t.example.path)}</code> at byte {t.example.offset:,}:</p>"
        f"<pre>{html_text(t.example.text, 500)}</pre></details>"
        for text, t in found
    )
    return f"<div class=templates>{rows}</div>"


def _page_files(findings: Findings) -> str:
    rows = "".join(
        f"<tr><td><code>{_html_path(a.path)}</code>{' <small>gzip</small>' if a.packed else ''}"
        f"{_numbers(_fact(f'file {a.path}', a.lines), f'{a.size:,}', f'{a.pieces:,}')}<td>{_state(a.gapless, a.unread)}"
        for a in findings.accounts
    )
    head = "<th>file<th class=r>lines<th class=r>bytes of text<th class=r>pieces<th>accounted for"
    return f"<div class=scroll><table><thead><tr>{head}<tbody>{rows}</table></div>"


def _page_skipped(findings: Findings) -> str:
    shown = findings.inventory.skipped[:_MOST_SKIPPED]
    if not shown:
        return "<p>None.</p>"
    rows = "".join(f"<tr><td><code>{_html_path(s.path)}</code><td>{html_text(s.reason)}" for s in shown)
    more = "".join(f"<p>{text}</p>" for text in _more(len(findings.inventory.skipped) - len(shown), "skipped files"))
    return f"<div class=scroll><table><thead><tr><th>file<th>reason<tbody>{rows}</table></div>{more}"
