"""The message that every peer carries, the workloads, and the tally of what arrived."""

from __future__ import annotations

import asyncio
import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Final

import msgspec

WORKLOADS: Final = {
    "W1": "one producer, each send awaited",
    "W2": "one producer, all the batching there is",
    "W3a": "10 producers, each awaits its own sends",
    "W3b": "100 producers, each awaits its own sends",
    "W4": "1,000 a second, whether or not those before are stored",
    "W5": "100 agents in one consumer process, all the batching there is",
    "W6": "requests, one after another",
}

TEXT: Final = "A report of what was found, what it means and what should be done. " * 3
"""Makes the content 242 bytes of JSON, and the whole message about 443."""

TRACE: Final = "4bf92f3577b34da6a3ce929d"

PRODUCERS: Final = {"W1": 1, "W3a": 10, "W3b": 100}
"""Each producer awaits its own sends."""

RATE: Final = 1_000
"""Messages a second in W4, sent at their time whether or not those before are stored."""

QUEUES: Final = {"W5": 100}
"""In W5 one process reads so many queues; sent as in W2, to each in turn."""

WARM_UP: Final = 500
SOON_S: Final = 0.05
"""From the end of the warming up to the first message of W4."""
PATIENCE_S: Final = 120.0
"""A run in which nothing is complete after this long is reported with its losses."""

BATCH: Final = 1_000
"""Messages a call in W2."""


class Wire(msgspec.Struct, gc=False, rename={"sender": "from"}):
    """What a raw reference decodes from its JSON."""

    id: str
    type: str
    sender: str
    to: str
    in_reply_to: str | None
    content: Any
    metadata: dict[str, Any]
    created_at: str


_prefix = os.urandom(6).hex()


def content_of(number: int) -> dict[str, Any]:
    return {"n": number, "t": perf_counter(), "text": TEXT}


def build(number: int, sender: str) -> dict[str, Any]:
    """The reference's message, for peers that have none of their own; its id is a process prefix and a counter."""
    return {
        "id": f"{_prefix}-{number:023d}",
        "type": "task",
        "from": sender,
        "to": "sink",
        "in_reply_to": None,
        "content": content_of(number),
        "metadata": {"trace": TRACE},
        "created_at": datetime.now(UTC),
    }


def answer_to(asked: str, content: Any) -> dict[str, Any]:
    """The reply of a peer that has no messages of its own."""
    return {**build(0, "sink"), "in_reply_to": asked, "content": content}


class Tally:
    """What has arrived: each number once, or lost, or more than once. Latency of one message in sixteen."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.expect(0)

    def expect(self, count: int) -> None:
        """Begin anew with the numbers below `count`."""
        self._seen = bytearray(count)
        self._left = count
        self.sample = 15
        """A mask: latency is taken of the numbers that have none of these bits."""
        self.began_at: float | None = None
        """When number 0 was to be sent, at `RATE` a second; None: the content says when each was."""
        self.duplicates = 0
        self.latencies: list[float] = []
        self.done.clear()

    def by_the_clock(self, began_at: float) -> None:
        """The latency of each, from when it was to be sent: number 0 at `began_at`."""
        self.began_at, self.sample = began_at, 0

    def note(self, content: dict[str, Any]) -> None:
        """One message was handled; its content is read here, for every peer alike."""
        number: int = content["n"]
        if self._seen[number]:
            self.duplicates += 1
            return
        self._seen[number] = 1
        if not number & self.sample:
            meant = content["t"] if self.began_at is None else self.began_at + number / RATE
            self.latencies.append(perf_counter() - meant)
        if len(content["text"]) != len(TEXT):
            raise ValueError(f"message {number} arrived changed")
        self._left -= 1
        if not self._left:
            self.done.set()

    @property
    def lost(self) -> int:
        return self._left

    def percentiles_ms(self) -> list[float]:
        """p50, p95, p99, p99.9."""
        ordered = sorted(self.latencies)
        return [percentile(ordered, share) * 1e3 for share in (0.50, 0.95, 0.99, 0.999)]


class Figures(msgspec.Struct, kw_only=True):
    """One run of one peer. Rates are of messages handled and acknowledged; CPU is user + system, all threads, of
    the client's process (producer and consumer) and, where there is one, of the server's. Latency from the
    message's making to its handling; W4: from when it was to be sent; W6: of the whole request."""

    backend: str = ""
    peer: str
    workload: str
    count: int
    rate: float
    cpu_us: float
    server_us: float = 0.0
    p50_ms: float
    p95_ms: float = 0.0
    p99_ms: float
    p999_ms: float = 0.0
    lost: int
    duplicates: int
    load: float
    rss_mb: float


class Peer(ABC):
    """Something that carries messages within one process, perhaps by way of a server."""

    name: ClassVar[str]
    queues = 1
    """How many it serves; set before `open`."""
    sink = "sink"
    """The queue's name, and how those of many begin; set before `open`."""

    def queue_of(self, number: int) -> str:
        return self.sink if self.queues == 1 else f"{self.sink}-{number % self.queues}"

    def queue_names(self) -> list[str]:
        return [self.queue_of(number) for number in range(self.queues)]

    @abstractmethod
    async def open(self, folder: Path) -> None: ...

    @abstractmethod
    async def send(self, number: int, sender: str) -> None:
        """Return when the message is stored."""

    @abstractmethod
    async def send_all(self, numbers: range, sender: str) -> None:
        """Send with all the batching that there is."""

    @abstractmethod
    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        """Handle and acknowledge until `stop`; return when every acknowledgement is stored."""

    async def ask(self, number: int) -> dict[str, Any]:
        """Send a request and return the content of its reply (W6)."""
        raise NotImplementedError(f"{self.name} has no requests here")

    async def answer(self, stop: asyncio.Event) -> None:
        """Answer each request with its own content until `stop`."""
        raise NotImplementedError(f"{self.name} has no requests here")

    def server_cpu_s(self) -> float:
        """What the server has used so far, where there is one."""
        return 0.0

    async def close(self) -> None:
        return None


async def complete(tally: Tally, consumer: asyncio.Task[None]) -> bool:
    """Wait until everything arrived; raises what ended the consumer too early."""
    done = asyncio.create_task(tally.done.wait())
    await asyncio.wait({done, consumer}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    if consumer.done():
        consumer.result()
    return not done.cancel()


async def produce(peer: Peer, workload: str, count: int, tally: Tally) -> None:
    """Send the numbers below `count` in the way of the workload."""
    if workload in ("W2", "W5"):
        for first in range(0, count, BATCH):
            await peer.send_all(range(first, min(first + BATCH, count)), "p0")
    elif workload == "W4":
        await _at_their_time(peer, count, tally)
    elif workload == "W6":
        tally.sample = 0
        for number in range(count):
            tally.note(await peer.ask(number))
    else:
        producers = PRODUCERS[workload]

        async def one(own: range, sender: str) -> None:
            for number in own:
                await peer.send(number, sender)

        async with asyncio.TaskGroup() as group:
            for index in range(producers):
                group.create_task(one(range(index, count, producers), f"p{index}"))


async def _at_their_time(peer: Peer, count: int, tally: Tally) -> None:
    """An open loop: a send that takes long delays no other."""
    if tally.began_at is None:
        tally.by_the_clock(perf_counter())
    began_at = tally.began_at
    assert began_at is not None
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            early_s = began_at + number / RATE - perf_counter()
            if early_s > 0:
                await asyncio.sleep(early_s)
            group.create_task(peer.send(number, "p0"))


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def rss_mb() -> float:
    """The most that this process had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def chunks(numbers: range, size: int) -> Iterator[range]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]
