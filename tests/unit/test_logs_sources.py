"""What is read, what is skipped, and that the pieces are the file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivewire.teams.logs import sources
from hivewire.teams.logs.sources import Changed, Inventory, Piece, Source, count_lines, find, read, split

LINES = b"".join(b"2026-03-12 10:15:32 INFO line %d\n" % n for n in range(20_000))


def whole(pieces: list[Piece]) -> bytes:
    return b"".join(block for piece in pieces for _, block in read(piece))


def reasons(inventory: Inventory) -> dict[str, str]:
    return {Path(entry.path).name: entry.reason for entry in inventory.skipped}


def test_folders_files_and_patterns_name_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.log", "a.log", "deep/c.log", "deep/d.txt"):
        (tmp_path / name).write_bytes(b"x\n")
    (tmp_path / "link.log").symlink_to(tmp_path / "b.log")
    (tmp_path / "twin.log").hardlink_to(tmp_path / "a.log")
    files, skipped = find([str(tmp_path), str(tmp_path / "a.log"), str(tmp_path / "**" / "*.log")])
    assert [os.path.relpath(path, tmp_path) for path in files] == ["a.log", "b.log", "deep/c.log", "deep/d.txt"]
    assert skipped == []


def test_what_is_no_readable_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.log")).write_bytes(b"x\n")
    files, skipped = find([str(tmp_path), str(tmp_path / "missing")])
    assert files == []
    assert {Path(entry.path).name: entry.reason for entry in skipped} == {
        "pipe": "not a regular file",
        "dangling": "no such file or directory",
        "missing": "no such file or folder",
        "bad\\xff.log": "its name is not UTF-8",
    }


def test_results_are_not_read_as_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_bytes(b"x\n")
    (tmp_path / "a.log").write_bytes(b"x\n")
    assert find([str(tmp_path)], without=out)[0] == [str(tmp_path / "a.log")]
    assert find([str(out / "report.md")], without=out)[0] == [str(out / "report.md")]  # named: wanted


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(range(256)), "binary: it holds NUL bytes"),
        (b"\x01\x02\x03\x04" * 100, "binary: it holds many control characters"),
        ("text".encode("utf-16"), "UTF-16 text: convert it to UTF-8 first"),
        (b"\xfd7zXZ\x00rest", "compressed with xz: only gzip is read"),
        (b"BZh91AY", "compressed with bzip2: only gzip is read"),
        (gzip.compress(bytes(range(256))), "binary: it holds NUL bytes"),
        (gzip.compress(LINES)[:-9], "compressed file ended before the end-of-stream marker was reached"),
    ],
)
def test_files_that_are_no_text_are_skipped_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    inventory = split([str(path)])
    assert not inventory.sources
    assert not inventory.pieces
    assert reasons(inventory)["file"].lower() == reason.lower()


def test_a_corrupt_gzip_file_is_skipped(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(LINES))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "bad.gz").write_bytes(packed)
    inventory = split([str(tmp_path / "bad.gz")])
    assert inventory.sources == []
    assert reasons(inventory).keys() == {"bad.gz"}


def test_an_endless_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LONGEST_LINE", 100_000)
    (tmp_path / "a.log").write_bytes(b"x\n" + b"y" * 200_000)
    assert reasons(split([str(tmp_path / "a.log")])) == {"a.log": "a line is longer than 0 MiB"}
    (tmp_path / "b.log").write_bytes(LINES)  # longer in all, but not in a line
    monkeypatch.setattr(sources, "BLOCK", 10_000)
    assert not reasons(split([str(tmp_path / "b.log")], wished=1))


@pytest.mark.parametrize("content", [b"", b"\n", b"x", b"x\n", b"x\r\ny\r\n", b"\n\n\nx"])
def test_small_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.log").write_bytes(content)
    inventory = split([str(tmp_path / "a.log")])
    assert whole(inventory.pieces) == content
    assert count_lines(inventory.sources[0]) == len(content.splitlines())
    assert inventory.sources[0].pieces == (1 if content else 0)


@pytest.mark.parametrize("packed", [False, True])
def test_pieces_lie_end_to_end_and_end_where_lines_end(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(gzip.compress(LINES) if packed else LINES)
    inventory = split([str(path)], wished=1000)
    assert len(inventory.pieces) >= (2 if packed else 9)
    assert [piece.start for piece in inventory.pieces] == [0, *(piece.end for piece in inventory.pieces[:-1])]
    assert inventory.pieces[-1].end == inventory.sources[0].size == len(LINES)
    for piece in inventory.pieces:
        assert LINES[piece.end - 1 : piece.end] == b"\n"
        for offset, block in read(piece):
            assert LINES[offset : offset + len(block)] == block
    assert whole(inventory.pieces) == LINES
    assert count_lines(inventory.sources[0]) == 20_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=300).filter(lambda raw: b"\n" not in raw and b"\x00" not in raw), max_size=60),
    st.data(),
)
def test_any_text_is_the_sum_of_its_pieces(tmp_path: Path, lines: list[bytes], data: st.DataObject) -> None:
    content = b"#" * 9000 + b"\n" + b"\n".join(lines)
    block, least = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 900))
    path = tmp_path / "a.log"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", 8192 + block)
        patch.setattr(sources, "_LEAST_PIECE", least)
        inventory = split([str(path)], wished=10**9)
        blocks = [(piece, *part) for piece in inventory.pieces for part in read(piece)]
        assert b"".join(text for _, _, text in blocks) == content
        for piece, offset, text in blocks:  # whole lines, each where it says
            assert content[offset : offset + len(text)] == text
            assert text.endswith(b"\n") or offset + len(text) == piece.end
        assert all(content[piece.end - 1 : piece.end] == b"\n" for piece in inventory.pieces[:-1])
        assert count_lines(inventory.sources[0]) == content.count(b"\n") + (not content.endswith(b"\n"))


def test_a_piece_travels_as_json(tmp_path: Path) -> None:
    (tmp_path / "ä.log").write_bytes(LINES)
    for piece in split([str(tmp_path / "ä.log")]).pieces:
        assert msgspec.json.decode(msgspec.json.encode(piece), type=Piece) == piece


@pytest.mark.parametrize("change", ["rewritten", "shorter", "gone"])
def test_a_file_that_changed_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(LINES)
    (piece, *_) = split([str(path)]).pieces
    if change == "rewritten":
        path.write_bytes(LINES.replace(b"line 7\n", b"line 8\n"))
    elif change == "shorter":
        path.write_bytes(LINES[:100])
    else:
        path.unlink()
    with pytest.raises(Changed, match=r"a\.log"):
        list(read(piece))


def test_a_file_that_grew_is_read_as_far_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(LINES + b"half a li")
    inventory = split([str(path)])
    with path.open("ab") as file:
        file.write(b"ne\nmore\n")
    assert whole(inventory.pieces) == LINES + b"half a li"
    assert count_lines(inventory.sources[0]) == 20_001


def test_counting_a_file_that_got_shorter_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"x\n")
    with pytest.raises(Changed, match="fewer"):
        count_lines(Source(str(tmp_path / "a.log"), 100, False, 0, 1))
