"""What happened in a simulation, for the checks after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from hivewire.coordination.ledger.run_log import LogEntry
from hivewire.coordination.tasks import TaskResult


class Handled(msgspec.Struct, kw_only=True):
    """One start of a handler."""

    run: str
    subtask: str
    attempt: int
    id: str
    agent: str
    process: str
    began_at: float
    ended_at: float | None = None
    saw: dict[str, str] = {}
    """The marks of the outputs that it was given, by dependency."""


class Asked(msgspec.Struct):
    """One time that the model was asked for a plan."""

    run: str
    version: int
    process: str
    at: float
    answered_at: float | None = None


class Seen(msgspec.Struct):
    """What somebody read of a run's events."""

    run: str
    entries: list[LogEntry] = []
    is_whole: bool = False


class Ledgerbook:
    """All of it."""

    def __init__(self) -> None:
        self.handled: list[Handled] = []
        self.asked: list[Asked] = []
        self.seen: list[Seen] = []
        self.accepted: dict[str, float] = {}
        """Runs whose `start` has returned."""
        self.cancelled: dict[str, tuple[float, TaskResult]] = {}
        """When `cancel` returned, and what."""
        self.results: dict[str, list[TaskResult]] = {}
        self.operations = 0
        """Ledger writes, calls of people, plans asked for, handlers that began or ended."""
        self._events: dict[str, asyncio.Event] = {}
        self.arm: Callable[[int], Any] = lambda operations: None

    def accepted_now(self, run: str) -> asyncio.Event:
        """Set when `start` of this run has returned."""
        return self._events.setdefault(run, asyncio.Event())

    def operation(self) -> None:
        """One more has begun."""
        self.operations += 1
        self.arm(self.operations)
