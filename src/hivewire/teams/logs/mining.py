"""What is in a piece of a log: counts that add up, whichever way the file was split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Final, TypeVar

import msgspec

from hivewire.teams.logs.masking import fold, refine, severity_of, template_of
from hivewire.teams.logs.times import Clock, TimeShape, time_shape

K = TypeVar("K", str, int)

_LONGEST_EXAMPLE: Final = 400  # bytes
_MOST_SHAPES: Final = 50_000
GRAVE: Final = ("fatal", "error")


class Example(msgspec.Struct, frozen=True, order=True):
    """A line as it was read. The smallest by (path, offset) stands for its template."""

    path: str
    offset: int
    text: str


class TemplateCount(msgspec.Struct):
    """How often a template occurs, and one line of it."""

    count: int
    severity: str
    example: Example


class FileCount(msgspec.Struct):
    """How much of a file was read. `untimed` lines carry no time, `undecodable` ones are not UTF-8."""

    lines: int = 0
    bytes: int = 0
    undecodable: int = 0
    untimed: int = 0

    def add(self, other: FileCount) -> None:
        self.lines += other.lines
        self.bytes += other.bytes
        self.undecodable += other.undecodable
        self.untimed += other.untimed


class PieceSummary(msgspec.Struct):
    """Everything that was counted in a piece, or in many.

    Merging is commutative and associative, and `PieceSummary()` is its neutral element: each field is a sum,
    a minimum or a maximum. `minutes` counts lines by minute of the epoch and severity; `grave_minutes` counts
    those of error and fatal templates by template and minute. The memory is bounded by the number of
    templates and minutes: nothing is cut off here, only in the report.
    """

    files: dict[str, FileCount] = {}
    templates: dict[str, TemplateCount] = {}
    minutes: dict[int, dict[str, int]] = {}
    grave_minutes: dict[str, dict[int, int]] = {}
    first_at: int | None = None
    last_at: int | None = None

    @property
    def total(self) -> FileCount:
        total = FileCount()
        for count in self.files.values():
            total.add(count)
        return total

    @property
    def severities(self) -> dict[str, int]:
        """Lines by severity, those without a time included."""
        counts: Counter[str] = Counter()
        for template in self.templates.values():
            counts[template.severity] += template.count
        return dict(counts)

    def merge(self, other: PieceSummary) -> PieceSummary:
        """Both together, as a new summary."""
        return merged((self, other))

    def add(self, other: PieceSummary) -> None:
        """Count `other` in; it stays as it is."""
        for path, count in other.files.items():
            self.files.setdefault(path, FileCount()).add(count)
        for text, found in other.templates.items():
            self._add_template(text, found)
        for minute, severities in other.minutes.items():
            _add_counts(self.minutes.setdefault(minute, {}), severities)
        for text, minutes in other.grave_minutes.items():
            _add_counts(self.grave_minutes.setdefault(text, {}), minutes)
        self.first_at = min((at for at in (self.first_at, other.first_at) if at is not None), default=None)
        self.last_at = max((at for at in (self.last_at, other.last_at) if at is not None), default=None)

    def _add_template(self, text: str, found: TemplateCount) -> None:
        known = self.templates.get(text)
        if known is None:
            self.templates[text] = TemplateCount(found.count, found.severity, found.example)
            return
        known.count += found.count
        known.example = min(known.example, found.example)


def _add_counts(into: dict[K, int], counts: dict[K, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


def merged(summaries: Iterable[PieceSummary]) -> PieceSummary:
    """All of them together; the order does not matter."""
    whole = PieceSummary()
    for summary in summaries:
        whole.add(summary)
    return whole


class _Shape(msgspec.Struct, frozen=True, eq=False):
    template: str
    severity: str
    time: TimeShape | None


# Caches of pure functions, for all files of this process: they may be emptied at any moment.
_shapes: dict[bytes, _Shape] = {}
_templates: dict[bytes, tuple[str, str]] = {}


def _shape(folded: bytes) -> _Shape:
    for cache in (_shapes, _templates):
        if len(cache) > _MOST_SHAPES:
            cache.clear()
    refined = refine(folded)
    known = _templates.get(refined)
    if known is None:
        template = template_of(refined)
        known = _templates[refined] = (template, severity_of(template))
    shape = _shapes[folded] = _Shape(*known, time_shape(folded))
    return shape


class Miner:
    """Counts the lines of one file, block by block. A block ends where a line ends."""

    def __init__(self, path: str, modified_at: int) -> None:
        self._path = path
        self._clock = Clock(modified_at)
        self.summary = PieceSummary()

    def add(self, block: bytes, offset: int) -> None:
        """Count the lines of `block`, which begins at byte `offset` of the file."""
        if not block:
            return
        lines, folded = block.split(b"\n"), fold(block).split(b"\n")
        if block.endswith(b"\n"):
            lines.pop()
            folded.pop()
        known = _shapes.get
        shapes = [known(text) or _shape(text) for text in folded]
        minutes = self._minutes(lines, shapes)
        found = PieceSummary()
        found.files[self._path] = FileCount(len(lines), len(block), _undecodable(block, lines), minutes.count(None))
        self._count_templates(found, lines, shapes, offset)
        _count_minutes(found, shapes, minutes)
        self._note_ends(found, lines, shapes, minutes)
        self.summary.add(found)

    def _minutes(self, lines: list[bytes], shapes: list[_Shape]) -> list[int | None]:
        minutes: list[int | None] = []
        note, read, by_cut = minutes.append, self._clock.minute, self._clock.by_cut
        for line, shape in zip(lines, shapes, strict=True):
            time = shape.time
            if time is None:
                note(None)
                continue
            minute = by_cut.get(line[time.cut]) if time.cut is not None else None
            note(read(line, time) if minute is None else minute)
        return minutes

    def _count_templates(self, found: PieceSummary, lines: list[bytes], shapes: list[_Shape], offset: int) -> None:
        first = dict(zip(reversed(shapes), range(len(shapes) - 1, -1, -1), strict=True))
        offsets = list(accumulate((len(line) + 1 for line in lines), initial=offset))
        for shape, count in Counter(shapes).items():
            at = first[shape]
            text = lines[at][:_LONGEST_EXAMPLE].decode("utf-8", "replace").rstrip("\r")
            example = Example(self._path, offsets[at], text)
            found._add_template(shape.template, TemplateCount(count, shape.severity, example))

    def _note_ends(
        self, found: PieceSummary, lines: list[bytes], shapes: list[_Shape], minutes: list[int | None]
    ) -> None:
        if not found.minutes:
            return
        ends = {min(found.minutes), max(found.minutes)}
        seconds = [
            minute * 60 + self._clock.second(line, shape.time)
            for line, shape, minute in zip(lines, shapes, minutes, strict=True)
            if minute is not None and minute in ends and shape.time is not None
        ]
        found.first_at, found.last_at = min(seconds), max(seconds)


def _count_minutes(found: PieceSummary, shapes: list[_Shape], minutes: list[int | None]) -> None:
    for (minute, severity), count in Counter(zip(minutes, [s.severity for s in shapes], strict=True)).items():
        if minute is not None:
            found.minutes.setdefault(minute, {})[severity] = count
    for shape, minute in zip(shapes, minutes, strict=True):
        if shape.severity in GRAVE and minute is not None:
            counts = found.grave_minutes.setdefault(shape.template, {})
            counts[minute] = counts.get(minute, 0) + 1


def _undecodable(block: bytes, lines: list[bytes]) -> int:
    try:
        block.decode()
    except UnicodeDecodeError:
        return sum(map(_is_undecodable, lines))
    return 0


def _is_undecodable(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
