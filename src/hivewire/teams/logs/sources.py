"""Which files there are to read, and their pieces: byte ranges of the text that end where a line ends.

A piece of a gzip file is a range of the text inside. Reading it means to unpack everything before it, so n
pieces cost (n + 1) / 2 times the unpacking of the whole file: about a tenth of the work of mining for the at
most dozen pieces that `split` makes of one file. Each piece carries a hash of its bytes: a file that was changed
or rotated in between is noticed, one that only grew is read as far as it went when it was found.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

BLOCK: Final = 1 << 20
_LONGEST_LINE: Final = 64 << 20
_LEAST_PIECE, _MOST_PIECE, _MOST_PIECES = 64 << 10, 8 << 20, 1000
_PACKED: Final = 8  # what a gzip file of logs grows to, roughly: it only sizes the pieces
_MAGIC: Final = ((b"\xfd7zXZ\x00", "xz"), (b"BZh", "bzip2"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"))
_TEXT_CONTROLS: Final = b"\t\n\r\x0b\x0c\x1b\x08"


class Piece(msgspec.Struct, frozen=True):
    """Bytes `start` to `end` of the text of a file: whole lines."""

    path: str
    start: int
    end: int
    size: int  # of the whole text, when it was found
    fingerprint: str  # of the bytes of this piece
    packed: bool
    modified_at: int


class Source(msgspec.Struct, frozen=True):
    """A file to read. `size` is that of its text: unpacked, and no more than was there when it was found."""

    path: str
    size: int
    packed: bool
    modified_at: int
    pieces: int


class Skipped(msgspec.Struct, frozen=True):
    """A file that is not read, and why."""

    path: str
    reason: str


class Inventory(msgspec.Struct, frozen=True):
    """What was found. The pieces are in the order of the files and of their text."""

    sources: list[Source]
    skipped: list[Skipped]
    pieces: list[Piece]


class Changed(Exception):
    """The file is no longer what it was when it was found."""


class _Skip(Exception):
    """Not a file that can be read; the text is the reason."""


def find(paths: Iterable[str], *, without: Path | None = None) -> tuple[list[str], list[Skipped]]:
    """The regular files that `paths` (files, folders, globs) name, each once, sorted; and the rest.

    Nothing below the folder `without` is found by way of a folder or a glob.
    """
    files: dict[tuple[int, int], str] = {}
    skipped: dict[str, Skipped] = {}
    for path, is_named in _named(paths, skipped):
        if not is_named and without is not None and Path(path).resolve().is_relative_to(without.resolve()):
            continue
        try:
            path.encode()
            facts = os.stat(path)
            if not stat.S_ISREG(facts.st_mode):
                raise _Skip("not a regular file")
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            skipped[shown] = Skipped(shown, "its name is not UTF-8")
        except (OSError, _Skip) as error:
            skipped[path] = Skipped(path, _reason(error))
        else:  # links and repeated arguments name a file twice: the first name in order stands for it
            place = (facts.st_dev, facts.st_ino)
            files[place] = min(path, files.get(place, path))
    return sorted(files.values()), [skipped[path] for path in sorted(skipped)]


def _named(paths: Iterable[str], skipped: dict[str, Skipped]) -> Iterator[tuple[str, bool]]:
    for given in paths:
        path = os.path.abspath(os.path.expanduser(given))
        if os.path.isdir(path):
            for found in _below(path, skipped):
                yield found, False
        elif os.path.lexists(path):
            yield path, True
        elif matches := sorted(glob.glob(path, recursive=True)):
            for match in matches:
                if not os.path.isdir(match):
                    yield match, False
        else:
            skipped[path] = Skipped(path, "no such file or folder")


def _below(folder: str, skipped: dict[str, Skipped]) -> Iterator[str]:
    def refused(error: OSError) -> None:
        skipped[str(error.filename)] = Skipped(str(error.filename), _reason(error))

    for parent, folders, names in os.walk(folder, onerror=refused):
        folders.sort()
        for name in sorted(names):
            yield os.path.join(parent, name)


def split(files: Iterable[str], *, wished: int = 32) -> Inventory:
    """Read every file once and cut it into pieces, about `wished` in all but none very small or large."""
    files = list(files)
    sizes = {path: size_of(path) for path in files}
    total = sum(size * (_PACKED if path.endswith(".gz") else 1) for path, size in sizes.items())
    target = max(_LEAST_PIECE, min(_MOST_PIECE, total // max(1, wished)), total // _MOST_PIECES)
    inventory = Inventory([], [], [])
    for path in files:
        try:
            source, pieces = _split_one(path, target)
        except (OSError, EOFError, zlib.error, _Skip) as error:
            inventory.skipped.append(Skipped(path, _reason(error)))
        else:
            inventory.sources.append(source)
            inventory.pieces.extend(pieces)
    return inventory


def size_of(path: str) -> int:
    """Bytes in the file; 0 when it cannot be looked at: opening it will say why."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _split_one(path: str, target: int) -> tuple[Source, list[Piece]]:
    with open(path, "rb") as file:
        facts = os.fstat(file.fileno())
        packed = file.read(2) == b"\x1f\x8b"
    if packed:
        target = max(4 * target, facts.st_size)
    ranges: list[tuple[int, int, str]] = []
    with _opened(path, packed) as text:
        size = None if packed else facts.st_size
        for start, end, digest in _ranges(text, size, target):
            ranges.append((start, end, digest))
    whole = ranges[-1][1] if ranges else 0
    modified_at = int(facts.st_mtime)
    pieces = [Piece(path, start, end, whole, digest, packed, modified_at) for start, end, digest in ranges]
    return Source(path, whole, packed, modified_at, len(pieces)), pieces


def _ranges(text: gzip.GzipFile | IO[bytes], size: int | None, target: int) -> Iterator[tuple[int, int, str]]:
    start = end = 0
    digest = hashlib.blake2b(digest_size=16)
    line_from = 0
    while block := text.read(BLOCK if size is None else min(BLOCK, size - end)):
        if end == 0:
            _check_is_text(block[:8192])
        while block:
            # the piece may end with the first line that ends at or after its wished size
            cut = block.find(b"\n", max(0, start + target - end - 1)) + 1
            part, block = (block[:cut], block[cut:]) if cut else (block, b"")
            digest.update(part)
            line_from = end + part.rfind(b"\n") + 1 if b"\n" in part else line_from
            end += len(part)
            if end - line_from > _LONGEST_LINE:
                raise _Skip(f"a line is longer than {_LONGEST_LINE >> 20} MiB")
            if cut:
                yield start, end, digest.hexdigest()
                start, digest = end, hashlib.blake2b(digest_size=16)
    if end > start:
        yield start, end, digest.hexdigest()


def _check_is_text(head: bytes) -> None:
    for magic, name in _MAGIC:
        if head.startswith(magic):
            raise _Skip(f"compressed with {name}: only gzip is read")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _Skip("UTF-16 text: convert it to UTF-8 first")
    if b"\x00" in head:
        raise _Skip("binary: it holds NUL bytes")
    odd = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)
    if odd * 20 > len(head):
        raise _Skip("binary: it holds many control characters")


def _opened(path: str, packed: bool) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path, "rb") if packed else open(path, "rb")


def read(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of blocks of whole lines, together the piece. Raises `Changed` at the end, or before."""
    digest = hashlib.blake2b(digest_size=16)
    rest, offset = b"", piece.start
    try:
        with _opened(piece.path, piece.packed) as text:
            text.seek(piece.start)
            left = piece.end - piece.start
            while left and (block := text.read(min(BLOCK, left))):
                left -= len(block)
                digest.update(block)
                block = rest + block
                cut = block.rfind(b"\n") + 1 if left else len(block)
                if cut:
                    yield offset, block[:cut]
                rest, offset = block[cut:], offset + cut
    except (OSError, EOFError, zlib.error) as error:
        raise Changed(f"{piece.path}: {_reason(error)}") from error
    if left or digest.hexdigest() != piece.fingerprint:
        raise Changed(f"{piece.path}: bytes {piece.start} to {piece.end} are not what they were when it was found")


def count_lines(source: Source) -> int:
    """The lines of the whole file, as plainly as they can be counted. Raises `Changed` when it got shorter."""
    lines, left, last = 0, source.size, b"\n"
    try:
        with _opened(source.path, source.packed) as text:
            while left and (block := text.read(min(BLOCK, left))):
                left -= len(block)
                lines += block.count(b"\n")
                last = block[-1:]
    except (OSError, EOFError, zlib.error) as error:
        raise Changed(f"{source.path}: {_reason(error)}") from error
    if left:
        raise Changed(f"{source.path}: {left} bytes fewer than when it was found")
    return lines + (last != b"\n")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
