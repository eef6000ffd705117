"""The floors, and whether a run holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from benchmarks.peers import FRAMEWORKS
from hivewire.bench.report import Verdict
from hivewire.bench.workload import Figures


class Floor(NamedTuple):
    name: str
    workload: str
    peer: str
    reference: str
    share: float


class Ceiling(NamedTuple):
    """At most so many times what the reference has, and so much more."""

    name: str
    workload: str
    figure: Literal["cpu_us", "p50_ms", "p99_ms"]
    times: float
    plus: float = 0.0
    peer: str = "hivewire redis"
    reference: str = "redis-autopipe"


FLOORS: Final = (
    Floor("P5", "W1", "hivewire memory", "asyncio.Queue", 0.70),
    Floor("P5", "W2", "hivewire memory", "mem-deque", 0.45),
    Floor("P5", "W3a", "hivewire memory", "mem-deque", 0.45),
    Floor("P5", "W3b", "hivewire memory", "mem-deque", 0.45),
    Floor("P5", "W5", "hivewire memory", "mem-deque", 0.45),
    Floor("P6", "W1", "hivewire sqlite", "sqlite-wal", 0.75),
    Floor("P6", "W2", "hivewire sqlite", "sqlite-wal", 0.65),
    Floor("P6", "W5", "hivewire sqlite", "sqlite-wal", 0.65),
    Floor("P6", "W1", "hivewire sqlite NORMAL", "sqlite-wal NORMAL", 0.75),
    Floor("P6", "W2", "hivewire sqlite NORMAL", "sqlite-wal NORMAL", 0.65),
    Floor("P6", "W5", "hivewire sqlite NORMAL", "sqlite-wal NORMAL", 0.65),
    Floor("P6", "W2", "hivewire sqlite", "litequeue", 10),
    Floor("P6", "W2", "hivewire sqlite", "persist-queue", 25),
    *(Floor("P1", workload, "hivewire redis", "redis-autopipe", 0.60) for workload in ("W2", "W3a", "W3b", "W5")),
    Floor("P2", "W1", "hivewire redis", "redis-autopipe", 0.85),
    *(Floor("P7", "W3b", "hivewire redis", peer, 10) for peer in FRAMEWORKS),
    Floor("P3", "W2", "hivewire kafka", "confluent-kafka raw", 0.60),
    *(Floor("P3", w, "hivewire kafka", peer, 0.80) for w in ("W3a", "W3b") for peer in ("kafka-batched", "aiokafka")),
    Floor("P4", "W1", "hivewire kafka", "kafka-batched", 0.85),
    Floor("P4", "W5", "hivewire kafka", "kafka-batched", 0.60),
    Floor("P4", "W6", "hivewire kafka", "kafka-batched", 0.80),
    Floor("P7", "W3b", "hivewire kafka", "FastStream Kafka", 10),
)
CEILINGS: Final = (
    *(Ceiling("P1", workload, "cpu_us", 2) for workload in ("W2", "W3a", "W3b", "W5")),
    Ceiling("P2", "W4", "p50_ms", 1.5),
    Ceiling("P2", "W4", "p99_ms", 1.5, 2.0),
    Ceiling("P2", "W6", "p50_ms", 1.5),
    Ceiling("P5", "W6", "p50_ms", 3, peer="hivewire memory", reference="mem-deque"),
)
CONDITIONS: Final = (
    Floor("condition", "W1", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W2", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W3a", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W3b", "mem-deque", "asyncio.Queue", 1),
    Floor("condition", "W2", "sqlite-wal", "litequeue", 15),
    Floor("condition", "W3b", "redis-autopipe", "redis-py asyncio", 4),
    Floor("condition", "W2", "kafka-batched", "aiokafka", 0.9),
)


def judge(of: Sequence[Figures]) -> list[Verdict]:
    """Of the medians; floors whose peers did not run are not judged."""
    by_key = {(figures.workload, figures.peer): figures for figures in of}
    verdicts = []
    for floor in (*CONDITIONS, *FLOORS):
        mine, other = by_key.get((floor.workload, floor.peer)), by_key.get((floor.workload, floor.reference))
        if mine is None or other is None:
            continue
        ratio, cpu = mine.rate / other.rate, other.cpu_us / mine.cpu_us
        verdicts.append(
            Verdict(
                f"{floor.name} {floor.workload}: {floor.peer} >= {floor.share:g} x {floor.reference}",
                f"{ratio:.2f} x by rate, {cpu:.2f} x by CPU",
                ratio >= floor.share,
            )
        )
    for ceiling in CEILINGS:
        mine, other = by_key.get((ceiling.workload, ceiling.peer)), by_key.get((ceiling.workload, ceiling.reference))
        if mine is not None and other is not None:
            verdicts.append(_under(ceiling, getattr(mine, ceiling.figure), getattr(other, ceiling.figure)))
    return verdicts


def _under(ceiling: Ceiling, mine: float, other: float) -> Verdict:
    what, unit = {"cpu_us": ("client CPU", "us"), "p50_ms": ("p50", "ms"), "p99_ms": ("p99", "ms")}[ceiling.figure]
    plus = f" + {ceiling.plus:g} {unit}" if ceiling.plus else ""
    return Verdict(
        f"{ceiling.name} {ceiling.workload}: {what} of {ceiling.peer} <= {ceiling.times:g} x {ceiling.reference}{plus}",
        f"{mine / other:.2f} x, {mine:.3g} {unit} against {other:.3g}",
        mine <= ceiling.times * other + ceiling.plus,
    )
