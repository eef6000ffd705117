"""Thousands of instances of a few agents: they share topics and clients, and each keeps its order."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from hivewire.backends.kafka.backend import KafkaBackend
from hivewire.message import Message
from hivewire.testing.conformance.waiting import count, until, until_true
from tests.conformance.kafka_fabric import KafkaFabric
from tests.faults.kafka_many import AGENTS

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

PROCESSES = 3
EACH = 4
_CLIENTS = 2
"""Of librdkafka, when nobody has looked at anything for some seconds: a producer, and the group's consumer."""


def _read(book: Path) -> list[tuple[str, int]]:
    lines = book.read_text().splitlines() if book.exists() else []
    return [(to, int(n)) for to, _, n in (line.partition(" ") for line in lines)]


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))


def _clients(pid: int) -> int:
    """Each client of librdkafka has one main thread."""
    return sum(_name(task) == "rdk:main" for task in Path(f"/proc/{pid}/task").iterdir())


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended since it was listed


async def test_instances_cost_no_clients_and_keep_their_order(tmp_path: Path) -> None:
    """With `-s` it prints what each process has of memory (kB) and threads."""
    instances = count(600, 5_000)
    addresses = [f"{AGENTS[n % len(AGENTS)]}/{n}" for n in range(instances)]
    async with KafkaFabric(tmp_path) as fabric:
        command = [sys.executable, "-m", "tests.faults.kafka_many", fabric.url]
        book = tmp_path / "book"  # of them all: a partition may move while it is worked on
        children = [await asyncio.create_subprocess_exec(*command, str(book)) for _ in range(PROCESSES)]
        try:
            for n in range(EACH):
                for start in range(0, instances, 500):
                    some = addresses[start : start + 500]
                    sent = [Message(type="task", sender="t", to=to, content={"n": n}) for to in some]
                    await fabric.protocol.send_many(sent)
            await until(lambda: len(_read(book)) >= EACH * instances, "all is handled", 300)
            for agent in AGENTS:

                async def is_empty(agent: str = agent) -> bool:
                    depth = await fabric.protocol.depth(agent)
                    return not depth.ready and not depth.in_flight

                await until_true(is_empty, "all is committed", 60)
            pids = [child.pid for child in children]
            backend = fabric.protocol.backend
            assert isinstance(backend, KafkaBackend)
            # Once a handler has outlived its partition somewhere, who takes one over reads the claims by a third one.
            most = _CLIENTS + bool(backend.catalogue.names("away/"))
            await until(lambda: all(_CLIENTS <= _clients(pid) <= most for pid in pids), f"{most} clients each", 60)
            for name in ("VmRSS", "Threads"):
                print(name, [_status(child.pid, name) for child in children])
        finally:
            for child in children:
                child.kill()
                await child.wait()
    seen: dict[str, list[int]] = {}
    for to, n in _read(book):
        if n not in seen.setdefault(to, []):
            seen[to].append(n)
    assert seen == {to: list(range(EACH)) for to in addresses}
