"""When a cron expression is due, in a time zone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final

_NAMED: Final[dict[str, str]] = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MOST_DAYS: Final = 41 * 366
"""The 29th of February comes again after eight years at the latest, and on a given weekday after forty."""
_AROUND: Final = timedelta(hours=26)
"""No zone has ever moved its clock by more than a day."""


class Cron:
    """Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday); lists, ranges,
    steps, English names; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Where both kinds of day are
    given, one of them is enough, as cron has it.

    When a zone's clock is put forward, what was due in the hour that does not exist is due as much later; when it
    is put back, what is due at fixed hours is due the first time alone. What is due in every hour goes on by the
    time that passes, in both cases.

    >>> berlin_noon = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    >>> Cron("30 3 * * mon-fri").after(berlin_noon, UTC).isoformat()
    '2026-03-02T03:30:00+00:00'
    """

    def __init__(self, expression: str) -> None:
        """Raises `ValueError` with what is wrong."""
        fields = _NAMED.get(expression.strip().lower(), expression).lower().split()
        if len(fields) != 5:
            raise ValueError(f"{expression!r} has {len(fields)} fields, not five: minute hour day month weekday")
        minute, hour, day, month, weekday = fields
        self._minutes = sorted(_field("minute", minute, 0, 59))
        self._hours = sorted(_field("hour", hour, 0, 23))
        self._days = _field("day of the month", day, 1, 31)
        self._months = _field("month", month, 1, 12, _MONTHS)
        self._weekdays = {number % 7 for number in _field("weekday", weekday, 0, 7, _DAYS)}
        self._needs_both = day.startswith(("*", "?")) or weekday.startswith(("*", "?"))
        self._every_hour = len(self._hours) == 24
        if next(self._local(datetime(2000, 1, 1)), None) is None:  # noqa: DTZ001  # a time of any zone
            raise ValueError(f"{expression!r} names a day that does not exist")

    def after(self, moment: datetime, zone: tzinfo) -> datetime:
        """The first time after the moment, in UTC."""
        moment = moment.astimezone(UTC)
        start = moment.astimezone(zone).replace(tzinfo=None) - _shift(moment, zone)
        best = latest = None
        for candidate in self._local(start.replace(second=0, microsecond=0)):
            for instant in self._instants(candidate, zone):
                if instant > moment and (best is None or instant < best):
                    best, latest = instant, instant.astimezone(zone).replace(tzinfo=None) + _shift(instant, zone)
            if latest is not None and candidate >= latest:
                break
        assert best is not None  # or there would be no such expression
        return best

    def _local(self, start: datetime) -> Iterator[datetime]:
        """Times on the wall that match, from this minute on."""
        day = start.date()
        first_hour, first_minute = start.hour, start.minute
        for _ in range(_MOST_DAYS):
            if day.month in self._months and self._is_day(day.day, day.isoweekday() % 7):
                for hour in self._hours:
                    if hour >= first_hour:
                        for minute in self._minutes:
                            if minute >= first_minute or hour > first_hour:
                                yield datetime.combine(day, time(hour, minute))
            first_hour = first_minute = 0
            day += timedelta(days=1)

    def _is_day(self, day: int, weekday: int) -> bool:
        if self._needs_both:
            return day in self._days and weekday in self._weekdays
        return day in self._days or weekday in self._weekdays

    def _instants(self, local: datetime, zone: tzinfo) -> list[datetime]:
        """When this time on the wall is due: once, twice, or never."""
        first = local.replace(tzinfo=zone).astimezone(UTC)
        second = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
        if first.astimezone(zone).replace(tzinfo=None) != local:
            return [] if self._every_hour else [first]
        return [first, second] if self._every_hour and second != first else [first]


def _shift(moment: datetime, zone: tzinfo) -> timedelta:
    """By how much the zone's clock is put forward or back, if that is so near that times on the wall then come in
    another order than they pass. Looked for narrowly: every minute of a day is due in some schedules."""
    around = _spread(moment, zone, _AROUND)
    return _spread(moment, zone, around) if around else around


def _spread(moment: datetime, zone: tzinfo, around: timedelta) -> timedelta:
    before, after = (moment - around).astimezone(zone).utcoffset(), (moment + around).astimezone(zone).utcoffset()
    assert before is not None
    assert after is not None
    return abs(after - before)


def _field(name: str, text: str, least: int, most: int, names: tuple[str, ...] = ()) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, has_step, step_text = part.partition("/")
        step = _number(name, step_text, 1, most) if has_step else 1
        if span in ("*", "?"):
            low, high = least, most - (name == "weekday")
        else:
            first, is_range, last = span.partition("-")
            low = _number(name, first, least, most, names)
            high = _number(name, last, least, most, names) if is_range else most if has_step else low
            if high < low:
                raise ValueError(f"{name} {part!r} runs backwards")
        found.update(range(low, high + 1, step))
    return found


def _number(name: str, text: str, least: int, most: int, names: tuple[str, ...] = ()) -> int:
    if text in names:
        return names.index(text) + least
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else -1
    if not least <= number <= most:
        known = f", or {names[0]} to {names[-1]}" if names else ""
        raise ValueError(f"{name} {text!r} is not a number from {least} to {most}{known}")
    return number
