"""Merging any split of a file, in any order, equals one pass."""

from __future__ import annotations

import random
from collections import Counter
from functools import reduce

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.teams.logs import mining
from hivewire.teams.logs.bursts import find_bursts
from hivewire.teams.logs.masking import fold, refine, severity_of, template_of
from hivewire.teams.logs.mining import Example, Miner, PieceSummary, merged
from hivewire.teams.logs.times import Clock, time_shape

MODIFIED_AT = 1_773_353_580

REAL_LINES = st.sampled_from(
    [
        b"2026-03-12 10:15:32,123 ERROR [api] order 17 failed",
        b"2026-03-12 10:15:59,000 ERROR [api] order 18 failed",
        b"2026-03-12 10:16:00,000 INFO [api] order 19 ok",
        b"Mar 12 10:17:01 host sshd[9]: Failed password for root from 10.0.0.1 port 22 ssh2",
        b"Traceback (most recent call last):",
        b'  File "/srv/api.py", line 7, in place',
        b"",
        b"M\xfcller 7",
        b"caf\xc3\xa9 8",
        b"1773310532.5 level=warn x",
        b"line with carriage return\r",
    ]
)
ODD_LINES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b" "))
LINES = st.lists(st.one_of(REAL_LINES, ODD_LINES), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=8)


def text_of(lines: list[bytes], ends_with_newline: bool) -> bytes:
    text = b"\n".join(lines)
    return text + b"\n" if ends_with_newline and lines else text


def cut_up(text: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    """The text in blocks that begin at some of its lines, with their offsets."""
    starts = [0, *(at + 1 for at, byte in enumerate(text) if byte == 10 and at + 1 < len(text))]
    chosen = sorted({0, *(starts[cut % len(starts)] for cut in cuts)})
    return [(start, text[start:end]) for start, end in zip(chosen, [*chosen[1:], len(text)], strict=True)]


def mined(blocks: list[tuple[int, bytes]], path: str = "a.log") -> PieceSummary:
    miner = Miner(path, MODIFIED_AT)
    for offset, block in blocks:
        miner.add(block, offset)
    return miner.summary


@settings(deadline=None)
@given(LINES, st.booleans(), CUTS, CUTS, st.randoms(use_true_random=False))
def test_any_split_merged_in_any_order_equals_one_pass(
    lines: list[bytes], ends: bool, cuts: list[int], within: list[int], chance: random.Random
) -> None:
    text = text_of(lines, ends)
    whole = mined([(0, text)])
    pieces = []
    for start, block in cut_up(text, cuts):  # a piece of its own, itself read in blocks
        pieces.append(mined([(start + offset, part) for offset, part in cut_up(block, within)]))
    chance.shuffle(pieces)
    assert merged(pieces) == whole
    assert find_bursts(merged(pieces)) == find_bursts(whole)


@settings(deadline=None)
@given(st.lists(LINES, min_size=3, max_size=3))
def test_merging_is_associative_commutative_and_has_a_neutral_element(parts: list[list[bytes]]) -> None:
    a, b, c = (mined([(100 * n, text_of(lines, True))], f"{n % 2}.log") for n, lines in enumerate(parts))
    before = msgspec.json.encode([a, b, c])
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(PieceSummary()) == PieceSummary().merge(a) == a
    assert msgspec.json.encode([a, b, c]) == before  # nothing that was merged has changed
    assert reduce(PieceSummary.merge, [c, a, b], PieceSummary()) == merged([a, b, c])


@settings(deadline=None)
@given(LINES, st.booleans())
def test_the_counts_are_those_of_a_plain_loop(lines: list[bytes], ends: bool) -> None:
    text = text_of(lines, ends)
    summary = mined([(0, text)])
    read = text.split(b"\n")[: -1 if text.endswith(b"\n") or not text else None]
    clock = Clock(MODIFIED_AT)
    templates: Counter[str] = Counter()
    minutes: Counter[tuple[int, str]] = Counter()
    first: dict[str, Example] = {}
    undecodable = untimed = offset = 0
    for line in read:
        text_template = template_of(refine(fold(line)))
        templates[text_template] += 1
        first.setdefault(text_template, Example("a.log", offset, line.decode("utf-8", "replace").rstrip("\r")))
        shape = time_shape(fold(line))
        minute = clock.minute(line, shape) if shape else None
        if minute is None:
            untimed += 1
        else:
            minutes[minute, severity_of(text_template)] += 1
        undecodable += line.decode("utf-8", "ignore").encode() != line
        offset += len(line) + 1
    assert {name: found.count for name, found in summary.templates.items()} == templates
    assert {name: found.example for name, found in summary.templates.items()} == first
    assert {(m, s): n for m, counts in summary.minutes.items() for s, n in counts.items()} == minutes
    total = summary.total
    assert (total.lines, total.bytes, total.undecodable, total.untimed) == (len(read), len(text), undecodable, untimed)
    assert sum(summary.severities.values()) == len(read)


@given(LINES)
@settings(max_examples=50, deadline=None)
def test_a_summary_survives_its_file(lines: list[bytes]) -> None:
    summary = mined([(0, text_of(lines, True))])
    assert msgspec.json.decode(msgspec.json.encode(summary), type=PieceSummary) == summary


def test_emptied_caches_change_nothing() -> None:
    text = b"".join(b"2026-03-12 10:%02d:00 INFO job %d of user%d done\n" % (n % 60, n, n) for n in range(200))
    filled = mined([(0, text)])
    mining._shapes.clear()
    mining._templates.clear()
    assert mined([(0, text)]) == filled


def test_first_and_last_are_to_the_second() -> None:
    text = b"2026-03-12 10:15:40 x\n2026-03-12 10:15:20 x\n2026-03-12 11:00:05 x\n2026-03-12 11:00:04 x\n"
    summary = mined([(0, text)])
    assert (summary.first_at, summary.last_at) == (1773310520, 1773313205)
