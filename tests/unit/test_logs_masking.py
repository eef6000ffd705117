"""Lines that differ in their values alone have one template."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.teams.logs import masking
from hivewire.teams.logs.masking import fold, refine, severity_of, template_of


def template(line: str | bytes) -> str:
    raw = line.encode() if isinstance(line, str) else line
    return template_of(refine(fold(raw)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("took 153 ms", "took <n> ms"),
        ("took 1,234.5 ms", "took <n> ms"),
        ("-7 and 12", "<n> and <n>"),
        ("from 10.0.0.9 port 22", "from <ip> port <n>"),
        ("peer 10.0.0.9:8080", "peer <ip>:<n>"),
        ("peer fe80::1ff:fe23:4567:890a up", "peer <ip> up"),
        ("peer 2001:db8::1 up", "peer <ip> up"),
        ("2026-03-12T10:15:32.123Z start", "<time> start"),
        ("2026-03-12 10:15:32,123 start", "<time> start"),
        ("2026-03-12T10:15:32+01:00 start", "<time> start"),
        ("Mar  2 10:15:32 host x", "<time> host x"),
        ("Thu Mar 12 10:15:32 2026 x", "<time> x"),
        ("[12/Mar/2026:10:15:32 +0000] x", "[<time>] x"),
        ("2026/03/12 10:15:32 [error] x", "<time> [error] x"),
        ("E0312 10:15:32.123456 77 a.go:12] x", "E<time> <n> a.go:<n>] x"),
        ("at 10:15:32 sharp", "at <time> sharp"),
        ("on 2026-03-12", "on <date>"),
        ("job 0c4eaa43-c99f-43ef-c1a7-e8ad7c33b87a done", "job <uuid> done"),
        ("job DEADBEEF-c99f-43ef-c1a7-e8ad7c33b87a done", "job <uuid> done"),
        ("job ab123456-c99f-43ef-c1a7-e8ad7c33b87a done", "job <uuid> done"),
        ("commit e3b0c44298fc1c149afbf4c8996fb924 ok", "commit <hex> ok"),
        ("commit d1234567890 ok", "commit <hex> ok"),
        ("commit 123456789d ok", "commit <hex> ok"),
        ("commit deadbeef ok", "commit <hex> ok"),
        ("at 0x7f03fe10", "at <hex>"),
        ("at 0xffff", "at <hex>"),
        ("read /srv/data/7c3/blob-be1b.bin: bad", "read <path>: bad"),
        ("read ~/notes.txt", "read <path>"),
        ("see https://example.com/a?b=1 now", "see <url> now"),
        ("mail to <user42@example.com>", "mail to <<email>>"),
        ('open("settings one") failed', "open(<str>) failed"),
        ("KeyError: 'sku-90417'", "KeyError: <str>"),
        ("it doesn't match what we can't see", "it doesn't match what we can't see"),
        ('"GET /api/orders/7 HTTP/1.1" 200', '"GET <path> HTTP/<n>" <n>'),
        ('{"msg":"order 7 \\"x\\" failed","by":"bob"}', '{"msg":"order <n> \\"x\\" failed","by":<str>}'),
        ('level=info msg="job 7 done"', 'level=info msg="job <n> done"'),
        ("worker-7 of node12", "worker-<n> of node<n>"),
        ("installed libc6:amd64 2.36-9+deb12u13", "installed libc<n>:amd<n> <version>"),
        ("up 1h30m", "up <duration>"),
        ("\tat shop.Stock.take(Stock.java:88)", "at shop.Stock.take(Stock.java:<n>)"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_what_varies_is_masked(line: str, expected: str) -> None:
    assert template(line) == expected


@settings(deadline=None)
@given(st.integers(0, 2**128 - 1), st.integers(0, 10**12), st.integers(0, 2**32 - 1))
def test_uuids_numbers_and_addresses_of_any_value_give_one_template(one: int, two: int, three: int) -> None:
    text = f"{one:032x}"
    uuid = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    address = ".".join(str(three >> shift & 255) for shift in (24, 16, 8, 0))
    assert template(f"order {uuid} took {two} ms from {address}") == "order <uuid> took <n> ms from <ip>"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80).filter(lambda line: b"\n" not in line), max_size=20))
def test_folding_a_block_is_folding_its_lines(lines: list[bytes]) -> None:
    assert fold(b"\n".join(lines)).split(b"\n") == [fold(line) for line in lines] or not lines


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_have_a_template_without_controls(raw: bytes) -> None:
    text = template(raw.replace(b"\n", b" "))
    assert not any(ord(character) < 32 or ord(character) == 127 for character in text)
    text.encode()  # no lone surrogates


@pytest.mark.parametrize(
    "line",
    [unit * 3000 for unit in ('"', '\\"', "a.", "/", "0a", "a@", ":a", "'", "0:", '="a', "0.", "-0", "a0")],
)
def test_hostile_lines_cost_little(line: str) -> None:
    before = time.process_time()
    template(line)
    assert time.process_time() - before < 0.25  # a line that is cut to 1,000 characters, squared


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("2026-03-12 10:15:32 ERROR [api] x", "error"),
        ("10:15:32 WARN x", "warning"),
        ("[crit] x", "fatal"),
        ("2026/03/12 10:15:32 [error] 77#0: x", "error"),
        ("E0312 10:15:32.123456 77 a.go:12] x", "error"),
        ("I0312 10:15:32.123456 77 a.go:12] ERROR in text", "info"),
        ('{"level":"warn","msg":"x"}', "warning"),
        ("level=debug x", "debug"),
        ("<time> NOTICE x", "info"),
        ("no error was found", "none"),
        ("Error: lower case words are text", "none"),
        ("the TERROR of it", "none"),
        ("", "none"),
    ],
)
def test_the_level_is_what_the_line_names(line: str, severity: str) -> None:
    assert severity_of(template(line)) == severity


@settings(deadline=None)
@given(st.text(alphabet='ERO I[]level=:"w<time>FATL-', max_size=30))
def test_the_short_cut_to_no_level_changes_nothing(text: str) -> None:
    found = masking._LEVEL.search(text, 0, 160)
    assert (severity_of(text) == "none") == (found is None)
