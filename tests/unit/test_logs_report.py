"""The report says what was counted, and hostile text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.teams.logs import charts
from hivewire.teams.logs.findings import Findings, Mined, MinedPiece, gather
from hivewire.teams.logs.mining import Miner
from hivewire.teams.logs.report import html_text, markdown, markdown_code, markdown_path, page, visible, visible_path
from hivewire.teams.logs.sources import Inventory, Piece, Skipped, Source

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "&lt;b&gt; &amp; &#60;",
    "| a | b |\r| --- | --- |",
    "`code` ``more`` [link](javascript:alert(1)) ![x](http://x/) <b>",
    "bell \x07 escape \x1b[31m red \x1b]0;title\x07 nul \x00",
    "right to left \u202e txt.exe \u2066 x",
    "$accounting ${files} $$ %s {0} {{x}}",
    "-->]]><!--",
    "M\u00fcller \U0001f600 \u65e5\u672c",
]


def findings(lines: list[bytes], path: str = "/logs/a.log", skipped: tuple[Skipped, ...] = ()) -> Findings:
    text = b"".join(line + b"\n" for line in lines)
    piece = Piece(path, 0, len(text), len(text), "", False, 1_773_353_580)
    miner = Miner(path, piece.modified_at)
    miner.add(text, 0)
    inventory = Inventory([Source(path, len(text), False, 0, 1)], list(skipped), [piece])
    return gather(inventory, [Mined([MinedPiece(piece, miner.summary.total.lines)], miner.summary)])


class Outline(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.odd: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        self.odd.append(data)


PLAIN = Outline(
    page(findings([b"2026-03-12 10:15:32 ERROR x %d" % n for n in range(40)], skipped=(Skipped("/x", "y"),)))
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_lines_and_names_add_nothing_to_the_page(text: str) -> None:
    raw = text.replace("\n", " ").replace("\r", " ").encode()
    lines = [b"2026-03-12 10:15:32 ERROR " + raw] * 40 + [raw, raw + b"\r"]
    found = findings(lines, path=f"/logs/{text}".replace("\x00", ""), skipped=(Skipped(f"/{text}", text),))
    outline = Outline(page(found))
    assert outline.tags <= PLAIN.tags | {"small", "details"}
    assert outline.attributes <= PLAIN.attributes
    assert outline.odd == []
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page(found) + markdown(found))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=60).filter(lambda raw: b"\n" not in raw), max_size=5), st.text(max_size=20))
def test_any_bytes_make_a_sound_report(lines: list[bytes], name: str) -> None:
    path = "/" + name.replace("\x00", "")
    if any("\ud800" <= character <= "\udfff" for character in path):
        return
    found = findings(lines, path=path, skipped=(Skipped(path, name),))
    text = page(found)
    text.encode()
    markdown(found).encode()
    assert Outline(text).tags <= PLAIN.tags | {"small", "details", "p"}


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = page(findings([b"2026-03-12 10:15:32 ERROR see https://example.com/x.js"] * 30))
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe|object|embed|base|form|a)\b", text)
    assert not re.search(r"(src|href|action|url|@import)\s*[=(:]", text.split("</style>")[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_a_code_span_in_a_table_is_one_cell(text: str) -> None:
    span = markdown_code(text)
    fence = re.match("`+", span)
    assert fence is not None
    assert span.endswith(fence.group())
    inside = span[len(fence.group()) : -len(fence.group())]
    assert fence.group() not in inside  # nothing ends it early
    assert "\n" not in span
    assert not re.search(r"(?<!\\)\|", span)


def test_no_two_paths_look_alike() -> None:
    paths = [
        "/a\x01",
        "/a\x02",
        "/a\\x01",
        "/a\\\\x01\x01",
        "/a\u202e",
        "/a\ufffd",
        "/a|b",
        "/a\\|b",
        "/a\n",
        "/a\\n",
        "/a`",
    ]
    assert len({visible_path(path) for path in paths}) == len(paths)
    assert len({markdown_path(path) for path in paths}) == len(paths)


def test_long_text_is_cut() -> None:
    assert len(visible("x" * 1000)) == 300
    assert html_text("<" * 1000).count("&lt;") == 299


def test_the_numbers_are_in_both_reports() -> None:
    lines = [b"2026-03-12 10:%02d:32 INFO job %d done" % (n % 60, n) for n in range(1500)]
    found = findings([*lines, *[b"2026-03-12 10:30:00 ERROR job failed"] * 90])
    told, shown = markdown(found), page(found)
    assert "| Lines read | 1,590 |" in told
    assert "`/logs/a.log` | 1,590 |" in told
    assert '<span data-fact="lines">1,590</span>' in shown
    assert '<span data-fact="file /logs/a.log">1,590</span>' in shown
    assert "2026-03-12 10:30 to 10:31" in told
    assert "2026-03-12 10:30 to 10:31" in shown
    assert markdown(found) == told  # a function of the findings


def test_no_lines_at_all() -> None:
    found = findings([])
    assert "no line carries a time" in markdown(found)
    assert "No line carries a time" in page(found)


def test_a_piece_that_is_missing_or_doubled_is_an_error() -> None:
    found = findings([b"x"])
    part = Mined([MinedPiece(found.inventory.pieces[0], 1)], found.summary)
    for parts in ([], [part, part]):
        with pytest.raises(ValueError, match=r"a\.log"):
            gather(found.inventory, parts)


def test_the_chart_shows_the_dense_part_and_counts_the_rest() -> None:
    minutes = dict.fromkeys(range(1_000_000, 1_000_600), 10) | {5_000: 3}
    window = charts.choose_window(minutes)
    assert window is not None
    assert (window.start, window.end, window.outside) == (1_000_000, 1_000_600, 3)
    bars = charts.bins({minute: {"info": count} for minute, count in minutes.items()}, window)
    assert sum(bar.get("info", 0) for bar in bars) == 6000
    assert len(bars) <= 180


@given(st.dictionaries(st.integers(15_000_000, 60_000_000), st.integers(1, 1000), min_size=1, max_size=50))
def test_no_line_gets_lost_between_chart_and_rest(minutes: dict[int, int]) -> None:
    window = charts.choose_window(minutes)
    assert window is not None
    bars = charts.bins({minute: {"info": count} for minute, count in minutes.items()}, window)
    assert sum(bar.get("info", 0) for bar in bars) + window.outside == sum(minutes.values())
    assert len(bars) <= 400


@given(st.integers(0, 10**9))
def test_an_axis_ends_just_above(highest: int) -> None:
    assert highest <= charts.nice_top(highest) <= max(1, 2 * highest)
