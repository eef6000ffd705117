"""From a seed to a program of operations whose results are the same on every store, whatever its timing."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Literal

import msgspec

from hivewire.backend import Features

AGENTS: Final = ("ant", "bee", "pool")
COMPETING: Final = "pool"
ECHO: Final = "echo"
"""Who answers requests."""
GROUPS: Final = ("herd", "hive")
TYPES: Final = ("task", "note")
FOREIGN_TYPE: Final = "odd"
KEYS: Final = ("k0", "k1", "k2", "k3", "k4")
IDEMPOTENCY_KEYS: Final = tuple(f"once-{n}" for n in range(12))

Outcome = Literal["ack", "nack", "reject"]
Kind = Literal[
    "send",
    "send_many",
    "resend",
    "idempotent",
    "delay",
    "delay_briefly",
    "expire",
    "hold",
    "settle",
    "drain",
    "join",
    "leave",
    "broadcast",
    "subscribe",
    "unsubscribe",
    "ask",
    "dead",
    "replay",
    "purge",
    "depth",
    "restart",
]

_WEIGHTS: Final[dict[Kind, int]] = {
    "send": 30,
    "send_many": 12,
    "resend": 4,
    "idempotent": 6,
    "delay": 2,
    "delay_briefly": 2,
    "expire": 1,
    "hold": 8,
    "settle": 9,
    "drain": 8,
    "join": 3,
    "leave": 2,
    "broadcast": 5,
    "subscribe": 2,
    "unsubscribe": 1,
    "ask": 4,
    "dead": 3,
    "replay": 2,
    "purge": 1,
    "depth": 10,
    "restart": 1,
}


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message. `script`: what becomes of its first, second … attempt when it is drained; then `ack`."""

    n: int
    agent: str
    key: str = ""
    type: str = "task"
    priority: int = 5
    script: tuple[Outcome, ...] = ()


class Operation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step. What it refers to may be missing (the program was made smaller): then it does less."""

    kind: Kind
    agent: str = ""
    told: tuple[Told, ...] = ()
    name: str = ""
    """A group, a type, or an idempotency key."""
    outcomes: tuple[Outcome, ...] = ()


def draw(seed: int, count: int) -> tuple[Operation, ...]:
    """Always the same for one seed and count."""
    drawing = _Drawing(Random(f"differential/{seed}"))
    operations = [drawing.next() for _ in range(count)]
    return (*operations, *(Operation("drain", agent) for agent in AGENTS), Operation("dead"), Operation("depth"))


def as_promised(program: Sequence[Operation], features: Features) -> Sequence[Operation]:
    """Where a message whose time ran out is only found by who reads it, somebody reads then. Where an idempotency key
    is not looked at by the store, the id of a copy is as settled as that of the first, and is not sent again."""
    copied = {told.n for operation in program if operation.kind == "idempotent" for told in operation.told}
    found: list[Operation] = []
    for operation in program:
        if operation.kind == "resend" and operation.told[0].n in copied and not features.store_dedup:
            continue
        found.append(operation)
        if operation.kind in ("expire", "replay") and not features.finds_expired:
            found.append(Operation("drain", operation.agent))
    return found


class _Drawing:
    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._count = 0
        self._sent: list[Told] = []

    def next(self) -> Operation:
        kind = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        agent = self._chance.choice(AGENTS)
        match kind:
            case "send":
                return Operation(kind, told=(self._told(agent),))
            case "send_many":
                told = [self._told(self._chance.choice(AGENTS)) for _ in range(self._chance.randint(2, 12))]
                return Operation(kind, told=tuple(told))
            case "resend" if self._sent:
                return Operation(kind, told=(self._chance.choice(self._sent[-30:]),))
            case "idempotent":
                name = f"{agent}/{self._chance.choice(IDEMPOTENCY_KEYS)}"
                return Operation(kind, told=(self._told(agent),), name=name)
            case "delay" | "delay_briefly" | "expire":
                return Operation(kind, agent, told=(self._alone(agent),))
            case "settle":
                return Operation(kind, agent, outcomes=self._outcomes(most=4))
            case "join" | "leave":
                return Operation(kind, agent, name=self._chance.choice(GROUPS))
            case "broadcast":
                return Operation(kind, told=(self._told("", script=False),), name=self._chance.choice(GROUPS))
            case "subscribe" | "unsubscribe":
                return Operation(kind, agent, name=self._chance.choice(TYPES))
            case "ask":
                return Operation(kind, ECHO, told=(self._alone(ECHO),))
            case "restart":
                return Operation(kind)
        return Operation("depth" if kind == "resend" else kind, agent)

    def _outcomes(self, most: int) -> tuple[Outcome, ...]:
        weights = {"ack": 6, "nack": 3, "reject": 1}
        drawn = self._chance.choices(list(weights), list(weights.values()), k=self._chance.randint(1, most))
        return tuple(drawn)  # type: ignore[arg-type]  # the names of the weights are outcomes

    def _told(self, agent: str, *, script: bool = True) -> Told:
        chance = self._chance
        self._count += 1
        type = FOREIGN_TYPE if chance.random() < 0.05 else chance.choice(TYPES)
        outcomes = self._outcomes(most=7) if script and chance.random() < 0.3 else ()
        told = Told(self._count, agent, chance.choice(KEYS), type, chance.choice((1, 5, 9)), outcomes)
        if script and agent != COMPETING:  # there, whether a copy beside an open delivery is taken is up to the store
            self._sent.append(told)
        return told

    def _alone(self, agent: str) -> Told:
        """One that waits behind no other."""
        self._count += 1
        return Told(self._count, agent, f"alone-{self._count}")
