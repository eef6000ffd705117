"""When a line was written: the usual formats of log times, read to the minute at the price of one look-up.

The shape of a line (see `masking`) says which format it has and often at which byte the time begins; then
the bytes up to the minute are cut out and looked up. Times without a zone are taken as UTC, times without a
year get the last year that does not put them after the file's own time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

_MONTH: Final = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_MONTHS: Final = {name: n for n, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_NUMBER: Final = rb"[0\x03]"
_NEAR: Final = 200  # a time further right belongs to the message
_MOST_REMEMBERED: Final = 50_000
_EARLIEST, _LATEST = 946_684_800, 4_102_444_800  # 2000 and 2100: other numbers of ten digits are no times

_IN_SHAPE: Final = re.compile(
    rb"(?P<iso>0-0-0[T _]0:0(?::0)?(?:[.,]%(n)b)?(?P<iso_zone> ?[+-]%(n)b)?)"
    rb"|(?P<slash>0/0/0 0:0)"
    rb"|(?P<access>0/%(m)b/0:0:0(?::0)?(?P<access_zone> ?[+-]0)?)"
    rb"|(?P<long>0 %(m)b 0 0:0)"
    rb"|(?P<syslog>\b%(m)b +0 0:0(?::0)?(?P<syslog_year> 0\b)?)"
    rb"|^[IWEFDC](?P<klog>0 0:0:0)"
    rb"|(?:^\W{0,2}|\b(?:ts|time|timestamp)\"?[:=] ?\"?)(?P<epoch>\x03)(?:\.%(n)b)?(?![\w-])"
    % {b"n": _NUMBER, b"m": _MONTH}
)
_ZONE: Final = rb"(?:[.,]\d+)?(?: ?([+-]\d\d:?\d\d))?"
# the groups: what decides the minute, the seconds, the zone
_IN_LINE: Final = {
    "iso": re.compile(rb"(\d{4}-\d\d-\d\d[T _]\d\d:\d\d)(?::(\d\d))?" + _ZONE),
    "slash": re.compile(rb"(\d{4}/\d\d/\d\d \d\d:\d\d)(?::(\d\d))?()"),
    "access": re.compile(rb"(\d\d/%b/\d{4}:\d\d:\d\d)(?::(\d\d))?" % _MONTH + _ZONE),
    "long": re.compile(rb"(\d\d %b \d{4} \d\d:\d\d)(?::(\d\d))?()" % _MONTH),
    "syslog": re.compile(rb"(%b [ \d]\d \d\d:\d\d)(?::(\d\d))?(?: ((?:19|20)\d\d)\b)?" % _MONTH),
    "klog": re.compile(rb"(\d{4} \d\d:\d\d):(\d\d)()"),
    "epoch": re.compile(rb"(?<!\d)(\d{10})()(?:\d{3})?()(?!\d)"),
}
_CUT: Final = {"iso": 16, "slash": 16, "access": 17, "long": 17, "syslog": 12, "klog": 10}


class TimeShape(msgspec.Struct, frozen=True, eq=False):
    """Where lines of one shape carry their time. `cut` is None when the place or the zone varies."""

    kind: str
    cut: slice | None


def time_shape(shape: bytes) -> TimeShape | None:
    """How to read the time of lines of this shape; None when they carry none."""
    head = shape[:_NEAR]
    found = _IN_SHAPE.search(head) if b"0:0" in head or b"\x03" in head else None  # no other line can have one
    if found is None:
        return None
    kind = next(kind for kind in _IN_LINE if found.group(kind) is not None)
    start = found.start(kind)
    before = shape[:start]
    varies = any(found.group(name) for name in ("iso_zone", "access_zone", "syslog_year"))
    if varies or kind == "epoch" or any(mark in before for mark in (b"0", b"\x01", b"\x02", b"\x03")):
        return TimeShape(kind, None)
    return TimeShape(kind, slice(start, start + _CUT[kind]))


class Clock:
    """Reads the times of the lines of one file. `modified_at` is the file's own time, in epoch seconds."""

    def __init__(self, modified_at: int) -> None:
        self._latest = datetime.fromtimestamp(modified_at, UTC) + timedelta(days=1)
        self._minutes: dict[tuple[str, bytes, bytes], int | None] = {}
        self.by_cut: dict[bytes, int | None] = {}  # the kinds differ in form, so one table serves all

    def minute(self, line: bytes, shape: TimeShape) -> int | None:
        """Minutes since the epoch; None when what looks like a time is none."""
        if shape.cut is not None:
            text = line[shape.cut]
            if len(self.by_cut) > _MOST_REMEMBERED:
                self.by_cut.clear()
            minute = self.by_cut[text] = self._read(shape.kind, text, b"")
            return minute
        found = _IN_LINE[shape.kind].search(line, 0, 2 * _NEAR)
        if found is None:
            return None
        text, _, zone = found.groups(b"")
        if shape.kind == "epoch":
            seconds = int(text)
            return seconds // 60 if _EARLIEST <= seconds < _LATEST else None
        key = (shape.kind, text, zone)
        if key not in self._minutes:
            if len(self._minutes) > _MOST_REMEMBERED:
                self._minutes.clear()
            self._minutes[key] = self._read(shape.kind, text, zone)
        return self._minutes[key]

    def second(self, line: bytes, shape: TimeShape) -> int:
        """The second within the minute, 0 when the line does not say. For lines whose minute is known."""
        pattern = _IN_LINE[shape.kind]
        found = pattern.match(line, shape.cut.start) if shape.cut is not None else pattern.search(line, 0, 2 * _NEAR)
        if found is None:
            return 0
        if shape.kind == "epoch":
            return int(found.group(1)) % 60
        return min(59, int(found.group(2) or 0))

    def _read(self, kind: str, text: bytes, zone: bytes) -> int | None:
        try:
            moment = self._moment(kind, text, zone)
        except (ValueError, KeyError, IndexError, OverflowError):  # the 99th of a month, the year 0
            return None
        minute = int(moment.timestamp()) // 60
        return minute if _EARLIEST <= minute * 60 < _LATEST else None

    def _moment(self, kind: str, text: bytes, zone: bytes) -> datetime:
        if _IN_LINE[kind].fullmatch(text + b":00" if kind == "klog" else text) is None:
            raise ValueError(text)
        hour, minute = int(text[-5:-3]), int(text[-2:])
        if kind == "klog":
            return self._with_year(int(text[0:2]), int(text[2:4]), hour, minute)
        if kind == "syslog":
            month, day = _MONTHS[text[0:3]], int(text[4:6])
            if not zone:  # here the last group is the year
                return self._with_year(month, day, hour, minute)
            return datetime(int(zone), month, day, hour, minute, tzinfo=UTC)
        if kind in ("access", "long"):
            moment = datetime(int(text[7:11]), _MONTHS[text[3:6]], int(text[0:2]), hour, minute, tzinfo=UTC)
        else:
            moment = datetime(int(text[0:4]), int(text[5:7]), int(text[8:10]), hour, minute, tzinfo=UTC)
        if zone:
            ahead = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            moment = moment - ahead if zone[:1] == b"+" else moment + ahead
        return moment

    def _with_year(self, month: int, day: int, hour: int, minute: int) -> datetime:
        for year in range(self._latest.year, self._latest.year - 5, -1):  # 29 February may be some years back
            try:
                moment = datetime(year, month, day, hour, minute, tzinfo=UTC)
            except ValueError:
                continue
            if moment <= self._latest:
                return moment
        raise ValueError("no year fits")
