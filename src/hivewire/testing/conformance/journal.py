"""What handlers saw and did, in one order, also over several processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `event` is `start`, `end`, `sent`, or what a worker says of itself."""

    event: str
    worker: str
    id: str = ""
    agent: str = ""
    key: str = ""
    n: int = -1
    attempt: int = 0
    at: float = 0.0
    note: str = ""


class Journal:
    """An append-only file of entries. A line is written before the handler goes on, so a killed process
    leaves all that it did, and lines of several processes stand in the order they happened. The line
    that a process was writing when it was killed may be torn: what it says had not been done yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._read_to = 0
        self._entries: list[Entry] = []

    def write(self, entry: Entry) -> None:
        line = msgspec.json.encode(msgspec.structs.replace(entry, at=entry.at or time.time()))
        os.write(self._file, b"\n" + line + b"\n")  # the first newline ends a torn line of another process

    def entries(self, *events: str, worker: str | None = None, agent: str | None = None) -> list[Entry]:
        """All entries so far, or those of these events, this worker and this agent."""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._entries += [msgspec.json.decode(line, type=Entry) for line in whole.splitlines() if line.endswith(b"}")]
        return [
            entry
            for entry in self._entries
            if (not events or entry.event in events)
            and (worker is None or entry.worker == worker)
            and (agent is None or entry.agent == agent)
        ]

    def starts(self, agent: str | None = None) -> list[Entry]:
        return self.entries("start", agent=agent)

    def ends(self, agent: str | None = None) -> list[Entry]:
        return self.entries("end", agent=agent)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def first_seen(entries: Iterable[Entry]) -> dict[str, list[int]]:
    """For each key, its numbers in the order in which they were seen for the first time."""
    seen: dict[str, dict[int, None]] = {}
    for entry in entries:
        seen.setdefault(entry.key, {}).setdefault(entry.n)
    return {key: list(numbers) for key, numbers in seen.items()}


def overlapping(entries: Iterable[Entry], *, dead: Iterable[str] = ()) -> list[str]:
    """Keys of which two messages were handled at one time. What a dead worker left open has no end."""
    gone = set(dead)
    running: dict[str, Entry] = {}
    found: list[str] = []
    for entry in entries:
        if entry.event == "start":
            other = running.get(entry.key)
            if other is not None and other.worker not in gone:
                found.append(f"{entry.key}: {other.n} on {other.worker} and {entry.n} on {entry.worker}")
            running[entry.key] = entry
        elif entry.event == "end" and entry.key in running and running[entry.key].worker == entry.worker:
            del running[entry.key]
    return found
