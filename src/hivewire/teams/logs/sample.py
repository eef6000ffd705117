"""A made-up day of eight services, the same for the same seed."""

from __future__ import annotations

import gzip
import math
import os
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from hivewire.teams.logs.files import write_atomically
from hivewire.teams.logs.phrases import SERVICES, TRACES, Phrase, Service, values

DAY: Final = int(datetime(2026, 3, 12, tzinfo=UTC).timestamp())
_BINARY: Final = bytes(range(256)) * 16


class PlannedBurst(msgspec.Struct, frozen=True):
    """Minutes in which a service logs many more lines like `phrase` than usual."""

    service: str
    phrase: str
    kind: str  # as in `bursts.Burst`
    minute: int  # of the epoch
    minutes: int
    extra: int  # lines a minute


class Sample(msgspec.Struct, frozen=True):
    """What was written: a folder, lines by file name, and the truth about the bursts."""

    folder: str
    lines: dict[str, int]
    bursts: tuple[PlannedBurst, ...]


def planned_bursts(lines: int, minutes: int) -> tuple[PlannedBurst, ...]:
    """Four incidents at fixed shares of the period."""
    first, rate = DAY // 60, lines // minutes
    return (
        PlannedBurst("auth", "Failed password", "lines", first + minutes // 5, 5, 2 * rate),
        PlannedBurst("payments", "acquirer timed out", "errors", first + minutes * 2 // 5, 6, 60 + rate // 10),
        PlannedBurst("inventory", "rolled back", "errors", first + minutes * 3 // 5, 4, 45 + rate // 10),
        PlannedBurst("storage", "input/output error", "errors", first + minutes * 17 // 20, 3, 90 + rate // 10),
    )


def write_sample(folder: Path, *, lines: int, seed: int) -> Sample:
    """Write at least `lines` lines to `folder`. The same arguments give the same bytes."""
    minutes = max(180, min(1440, lines // 150))
    bursts = planned_bursts(lines, minutes)
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    for service in SERVICES:
        chance = random.Random(f"{seed} {service.name}")
        own = [burst for burst in bursts if burst.service == service.name]
        count = math.ceil(lines * service.share)
        body = list(_service_lines(service, chance, count, minutes, own))
        rotated = len(body) // 4 if service.rotates else 0
        if rotated:
            _write(folder / f"{service.name}.log.1.gz", _packed(_joined(body[:rotated])), minutes)
            counts[f"{service.name}.log.1.gz"] = rotated
        _write(folder / f"{service.name}.log", _joined(body[rotated:]), minutes)
        counts[f"{service.name}.log"] = len(body) - rotated
    _write(folder / "core.1234", _BINARY, minutes)
    return Sample(str(folder), counts, bursts)


def _write(path: Path, content: bytes, minutes: int) -> None:
    write_atomically(path, content)
    # formats without a year take it from the file's time
    os.utime(path, (DAY + minutes * 60, DAY + minutes * 60))


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=6, mtime=0)


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def _service_lines(
    service: Service, chance: random.Random, lines: int, minutes: int, bursts: list[PlannedBurst]
) -> Iterator[bytes]:
    """At least `lines` lines, in the order of their times. What a line spills over (traces) comes on top."""
    draw = values(chance)
    usual = _chooser(chance, service.phrases)
    extra = {burst.minute + n: burst for burst in bursts for n in range(burst.minutes)}
    written = 0.0
    for minute in range(minutes):
        # more by day than by night
        written += lines / minutes * (1 + 0.25 * math.sin(math.tau * (minute / minutes - 0.25)))
        due = int(written)
        written -= due
        phrases = [usual() for _ in range(due)]
        if burst := extra.get(DAY // 60 + minute):
            culprits = [phrase for phrase in service.phrases if burst.phrase in phrase.text]
            phrases += culprits * burst.extra
            chance.shuffle(phrases)
        moments = sorted(chance.random() for _ in phrases)
        for moment, phrase in zip(moments, phrases, strict=True):
            yield _rendered(service, phrase, DAY + 60 * (minute + moment), draw)
            if phrase.level == "ERROR" and service.traces and chance.random() < 0.5:
                yield from TRACES[service.traces]
            if service.gaps and chance.random() < 0.01:
                yield b""
    for _ in range(3):  # the period may round down; a few lines more keep the total at or above what was asked
        yield _rendered(service, usual(), DAY + 60 * minutes - 0.001, draw)


def _chooser(chance: random.Random, phrases: list[Phrase]) -> Callable[[], Phrase]:
    population = [phrase for phrase in phrases for _ in range(phrase.weight)]
    size, rnd = len(population), chance.random
    return lambda: population[int(rnd() * size)]


def _rendered(service: Service, phrase: Phrase, at: float, draw: dict[str, Callable[[], object]]) -> bytes:
    text = phrase.text % tuple([draw[name]() for name in phrase.fields])
    return service.line(at, phrase.level, text).encode("utf-8" if phrase.utf8 else "latin-1")
