"""Waiting for a condition, with a deadline. No test sleeps for an event."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

patience = 1.0
"""Deadlines are multiplied by this: a test that plants bugs need not wait long for what never comes."""

SOAK = os.environ.get("HIVEWIRE_SOAK") == "1"


def count(sampled: int, full: int) -> int:
    """How many to do: `full` with HIVEWIRE_SOAK=1, else `sampled`."""
    return full if SOAK else sampled


async def until(condition: Callable[[], object], what: str, within_s: float = 15.0) -> None:
    """Poll until the condition holds; fail after `within_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s * patience
    while not condition():
        assert loop.time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


async def until_true(condition: Callable[[], Awaitable[object]], what: str, within_s: float = 15.0) -> None:
    """`until` for a condition that must be awaited."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s * patience
    while not await condition():
        assert loop.time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


async def eventually(value: Callable[[], Awaitable[T]], wanted: T, within_s: float = 15.0) -> None:
    """Poll until the value is the wanted one; the last value stands in the failure."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s * patience
    while (last := await value()) != wanted:
        assert loop.time() < deadline, f"not within {within_s} s: {last!r} should be {wanted!r}"
        await asyncio.sleep(0.01)
