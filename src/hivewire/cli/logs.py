"""Log lines on stderr, for people: time, process, level, event and its fields."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Final

from hivewire.errors import SettingsError

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={value}" for key, value in record.__dict__.items() if key not in _STANDARD)
        level = "" if record.levelno == logging.INFO else f" {record.levelname.lower()}:"
        line = f"{at} [{record.process}]{level} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(default: str = "warning") -> None:
    """Send log lines to stderr: Hivewire's from `default` on, everybody else's from warnings on.

    HIVEWIRE_LOG in the environment (`debug`, `info`, `warning`, `error`) overrules the default. Raises `SettingsError`
    for another word there.
    """
    wanted = os.environ.get("HIVEWIRE_LOG") or default
    if wanted.lower() not in _LEVELS:
        raise SettingsError(f"HIVEWIRE_LOG is one of {', '.join(_LEVELS)}; got {wanted!r} in the environment")
    root = logging.getLogger()
    if not root.handlers:  # else embedded in a program that has its own logging
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines())
        root.addHandler(handler)
    logging.getLogger("hivewire").setLevel(wanted.upper())
