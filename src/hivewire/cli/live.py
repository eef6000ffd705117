"""Shows how a run gets on: a few lines that are written over on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import logging
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TextIO

from hivewire.cli.options import printable
from hivewire.cli.tally import Tally

_FRAME_S: Final = 0.1
_LINE_S: Final = 2.0
_SHOWN_AT_WORK: Final = 8


class Live:
    """Lines that stay (`tell`) above a picture that changes (`show`)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self._drawn = 0
        self._next_at = 0.0
        self._last_line = ""

    def tell(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def show(self, tally: Tally) -> None:
        """The state of the run, as often as it makes sense to look at it."""
        now = time.monotonic()
        if now < self._next_at:
            return
        if self.is_terminal:
            self._next_at = now + _FRAME_S
            self._draw(self._picture(tally))
        else:
            self._next_at = now + _LINE_S
            line = _counts(tally)
            if line != self._last_line:
                self._last_line = line
                self.tell(f"{_clock(tally)}  {line}")

    def clear(self) -> None:
        """Leave only what stays."""
        self._erase()
        self._stream.flush()

    def _picture(self, tally: Tally) -> list[str]:
        lines = [f"{_clock(tally)}  {_bars(tally)}"]
        now = time.time()
        starts = sorted(tally.at_work.values(), key=lambda start: start.at)
        lines += [f"          {s.member}: {s.subtask}, {max(0.0, now - s.at):.1f} s" for s in starts[:_SHOWN_AT_WORK]]
        if len(starts) > _SHOWN_AT_WORK:
            lines.append(f"          and {len(starts) - _SHOWN_AT_WORK} more")
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be erased
        return [printable(line)[:width] for line in lines]

    def _draw(self, lines: list[str]) -> None:
        self._erase()
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")  # up to the first line, and clear from there
            self._drawn = 0


class _Above(io.TextIOBase):
    """Where log lines go while the picture is shown, so that they do not fall into it."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._live.tell(line)
        return len(text)


@contextmanager
def logs_above(live: Live) -> Generator[None]:
    """Meanwhile, what is logged to stderr appears above the picture."""
    moved = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr and live.is_terminal
    ]
    for handler in moved:
        handler.setStream(_Above(live))
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(sys.stderr)


def _clock(tally: Tally) -> str:
    return f"{time.time() - tally.began_at:6.1f} s"


def _counts(tally: Tally) -> str:
    groups = (f"{name} {done}/{whole}" for name, (done, whole) in tally.by_capability().items())
    again = f", delivered again {tally.redelivered}" if tally.redelivered else ""
    return ", ".join(groups) + again


def _bars(tally: Tally) -> str:
    groups = []
    for name, (done, whole) in tally.by_capability().items():
        filled = 10 * done // whole
        groups.append(f"{name} {'█' * filled}{'·' * (10 - filled)} {done}/{whole}" if whole > 1 else f"{name} {done}/1")
    return "  ".join(groups)
