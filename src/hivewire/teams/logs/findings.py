"""What the team knows at the end: the files, their pieces, and what was counted in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from hivewire.teams.logs.bursts import Burst, find_bursts
from hivewire.teams.logs.mining import GRAVE, PieceSummary, merged
from hivewire.teams.logs.sources import Inventory, Piece


class MinedPiece(msgspec.Struct, frozen=True):
    """A piece after mining. When `changed` says why it could not be read, nothing of it was counted."""

    piece: Piece
    lines: int
    changed: str = ""


class Mined(msgspec.Struct, frozen=True):
    """What one analyst made of its share of the pieces."""

    pieces: list[MinedPiece]
    summary: PieceSummary


class FileAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One file's books: they are closed when `pieces` lie end to end over `size` and nothing is `unread`."""

    path: str
    packed: bool
    size: int
    pieces: int
    lines: int
    unread: int  # bytes of pieces that changed before they could be read
    gapless: bool


class Findings(msgspec.Struct, frozen=True):
    """All that the report tells, in the order in which it tells it."""

    inventory: Inventory
    accounts: list[FileAccount]
    changed: list[MinedPiece]
    summary: PieceSummary
    bursts: list[Burst]

    def facts(self) -> dict[str, int]:
        """Every number of the report that can be checked against the input, by name."""
        total, severities = self.summary.total, self.summary.severities
        facts = {
            "lines": total.lines,
            "bytes": total.bytes,
            "files": len(self.inventory.sources),
            "skipped": len(self.inventory.skipped),
            "pieces": len(self.inventory.pieces),
            "templates": len(self.summary.templates),
            "grave": sum(severities.get(name, 0) for name in GRAVE),
            "bursts": len(self.bursts),
            "untimed": total.untimed,
            "undecodable": total.undecodable,
        }
        facts |= {f"severity {name}": count for name, count in severities.items()}
        facts |= {f"file {account.path}": account.lines for account in self.accounts}
        return facts


def gather(inventory: Inventory, mined: Iterable[Mined]) -> Findings:
    """Bring the analysts' results together. Raises `ValueError` when a piece is missing or was counted twice."""
    mined = list(mined)
    results = [result for part in mined for result in part.pieces]
    times = Counter((result.piece.path, result.piece.start) for result in results)
    expected = Counter((piece.path, piece.start) for piece in inventory.pieces)
    if times != expected:
        wrong = sorted((times - expected) + (expected - times))
        raise ValueError(f"these pieces are missing or were mined twice: {wrong[:5]}")
    summary = merged(part.summary for part in mined)
    by_file: dict[str, list[MinedPiece]] = {source.path: [] for source in inventory.sources}
    for result in sorted(results, key=lambda result: (result.piece.path, result.piece.start)):
        by_file[result.piece.path].append(result)
    accounts = [_account(source.path, source.packed, source.size, by_file[source.path]) for source in inventory.sources]
    changed = [result for parts in by_file.values() for result in parts if result.changed]
    return Findings(inventory, accounts, changed, summary, find_bursts(summary))


def _account(path: str, packed: bool, size: int, results: list[MinedPiece]) -> FileAccount:
    end, gapless = 0, True
    for result in results:
        gapless = gapless and result.piece.start == end
        end = result.piece.end
    return FileAccount(
        path=path,
        packed=packed,
        size=size,
        pieces=len(results),
        lines=sum(result.lines for result in results),
        unread=sum(result.piece.end - result.piece.start for result in results if result.changed),
        gapless=gapless and end == size,
    )
