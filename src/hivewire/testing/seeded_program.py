"""From a seed to a program: what three members do, and which faults strike them."""

from __future__ import annotations

from random import Random
from typing import Final, Literal

import msgspec

from hivewire.testing.profiles_faults import PLACES, Fault, FaultKind, Moment, Place, Point, points

SLOTS: Final = 3
OPERATIONS: Final = 110
FAULTS_TO_STRIKE: Final = 5
LEASE_S: Final = 2.0
MAX_ATTEMPTS: Final = 3
AGENTS: Final = ("ant", "bee")
COMPETING: Final = ("fox",)
"""Agents whose queues are in competing mode: no order, any idle worker takes the next one."""
LISTENERS: Final = ("cat", "dog")
"""Agents that join and leave the group."""
GROUP: Final = "herd"
SMALL_CAP: Final = 10
"""The cap of queues in every third program: senders wait, and some are refused."""

Outcome = Literal["ok", "raise", "after", "reject", "slow"]


class Step(msgspec.Struct, frozen=True, tag=True):
    """One operation of one slot, after a pause."""

    slot: int
    pause_s: float


class Send(Step, frozen=True, tag=True):
    """Send messages. `script` says what the handlers do at the first, second, … start of each."""

    agent: str
    key: str
    ids: tuple[str, ...]
    script: tuple[Outcome, ...] = ("ok",)
    delay_s: float = 0.0
    ttl_s: float | None = None
    idempotency_key: str | None = None
    is_large: bool = False
    """Its content goes to the blob store."""
    has_effect: bool = False
    """Its handlers do something that must happen once."""


class Resend(Step, frozen=True, tag=True):
    """Send the same message again, as after a lost confirmation."""

    of: str


class Ask(Step, frozen=True, tag=True):
    """Request, and wait for the reply."""

    agent: str
    key: str
    id: str
    script: tuple[Outcome, ...]
    timeout_s: float


class Broadcast(Step, frozen=True, tag=True):
    id: str


class Shout(Step, frozen=True, tag=True):
    """Broadcast to whoever listens now."""

    id: str


class Join(Step, frozen=True, tag=True):
    listener: str


class Leave(Step, frozen=True, tag=True):
    listener: str


class Serve(Step, frozen=True, tag=True):
    """Begin to handle an agent's messages."""

    agent: str
    by: Literal["serve", "receive"]
    concurrency: int


class Rest(Step, frozen=True, tag=True):
    """Stop handling an agent's messages, in peace."""

    agent: str


class Reopen(Step, frozen=True, tag=True):
    """Close the protocol and open another one."""


class Replay(Step, frozen=True, tag=True):
    """Send an agent's dead letters back."""

    agent: str


class Purge(Step, frozen=True, tag=True):
    """Throw an agent's dead letters away."""

    agent: str


class Plan(Step, frozen=True, tag=True):
    """Make a schedule."""

    name: str
    agent: str
    every_s: float


AnyStep = Send | Resend | Ask | Broadcast | Shout | Join | Leave | Serve | Rest | Reopen | Replay | Purge | Plan


class Program(msgspec.Struct, frozen=True):
    """All that a run depends on."""

    profile: str
    seed: int
    draw: int
    steps: tuple[AnyStep, ...]
    faults: tuple[Fault, ...]
    cap: int = 1_000_000
    aim: Point = ("append", "early")
    """One of the faults waits for this point: the seeds take the points in turn."""
    has_whole_trail: bool = False


_KINDS: Final[dict[str, dict[FaultKind, int]]] = {
    "sql": {"lose": 5, "double": 1, "delay": 2, "fail": 1, "freeze": 3, "crash": 3},
    "redis": {"lose": 5, "double": 1, "delay": 2, "fail": 1, "freeze": 3, "crash": 3, "revoke": 2},
    "kafka": {"lose": 5, "double": 1, "delay": 2, "fail": 1, "freeze": 3, "crash": 3, "revoke": 3},
}
_NEVER_THERE: Final[dict[str, set[Place]]] = {
    "sql": {"save"},
    "redis": {"save"},
    "kafka": {"settle", "start"},
}
"""Requests that the profile hardly ever makes: a fault that waits for one would not strike."""


def draw_program(profile: str, seed: int, draw: int = 0) -> Program:
    """The program of a seed. `draw` counts the tries until enough faults strike."""
    chance = Random(f"{profile}/{seed}/{draw}")
    turns = points(profile)
    aim = turns[seed % len(turns)]
    steps = _Steps(chance, aim[0]).all()
    faults = tuple(_fault(chance, profile) for _ in range(chance.randint(6, 9)))
    return Program(
        profile,
        seed,
        draw,
        steps,
        (*faults, _aimed(chance, aim)),
        SMALL_CAP if chance.random() < 1 / 3 else 1_000_000,
        aim,
        has_whole_trail=aim[0] == "trail" or chance.random() < 1 / 4,
    )


def _aimed(chance: Random, aim: Point) -> Fault:
    kind: FaultKind = chance.choice(("lose", "lose", "crash", "crash", "delay", "freeze"))
    return Fault(kind, *aim, chance.randrange(OPERATIONS // 3), _length_s(chance, kind))


def _fault(chance: Random, profile: str) -> Fault:
    kinds = _KINDS[profile]
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    places: list[tuple[Place, Moment]] = [
        (place, moment) for place, moment in PLACES[kind] if place not in _NEVER_THERE[profile]
    ]
    place, moment = chance.choice(places)
    return Fault(kind, place, moment, chance.randrange(OPERATIONS * 3 // 4), _length_s(chance, kind))


def _length_s(chance: Random, kind: FaultKind) -> float:
    shortest, longest = {
        "delay": (0.05, 1.5),
        "fail": (0.2, LEASE_S * 1.5),
        "freeze": (LEASE_S * 0.4, LEASE_S * 2.5),
        "crash": (0.1, LEASE_S * 1.5),
    }.get(kind, (0.1, 1.0))
    return chance.uniform(shortest, longest)


_LEADS_TO: Final[dict[Place, tuple[str, ...]]] = {
    "declare": ("join", "leave", "serve"),
    "drop": ("ask", "reopen"),
    "leave": ("reopen", "rest"),
    "publish": ("shout",),
    "purge": ("purge",),
    "release": ("reopen", "rest"),
    "revive": ("replay",),
    "schedule": ("plan",),
    "subscribe": ("join", "leave"),
}
"""Operations of which a program has more, so that its fault strikes."""


class _Steps:
    """Draws the steps one after another."""

    def __init__(self, chance: Random, aim: Place) -> None:
        self._chance = chance
        self._aim = aim
        self._steps: list[AnyStep] = []
        self._sent: dict[int, list[str]] = {slot: [] for slot in range(SLOTS)}
        self._idempotent: dict[int, list[Send]] = {slot: [] for slot in range(SLOTS)}
        self._count = 0

    def all(self) -> tuple[AnyStep, ...]:
        for slot in range(SLOTS):
            for agent in AGENTS + COMPETING + LISTENERS:
                self._steps.append(self._serve(slot, 0.0, agent))
        self._steps.append(Join(0, 0.0, LISTENERS[0]))
        kinds = (
            "resend",
            "idempotent",
            "ask",
            "broadcast",
            "shout",
            "join",
            "leave",
            "serve",
            "rest",
            "reopen",
            "replay",
            "purge",
            "plan",
        )
        weights = [8, 7, 5, 7, 4, 3, 2, 4, 4, 1, 1, 0.5, 0.3]
        for kind in _LEADS_TO.get(self._aim, ()):
            weights[kinds.index(kind)] += 4
        while len(self._steps) < OPERATIONS:
            slot = self._chance.randrange(SLOTS)
            pause = self._chance.choice((0.0, 0.0, self._chance.random() * 0.3))
            kind = self._chance.choices(("send", *kinds), (55, *weights))[0]
            self._steps.append(self._draw(kind, slot, pause))
        return tuple(self._steps)

    def _draw(self, kind: str, slot: int, pause: float) -> AnyStep:
        chance = self._chance
        agent = chance.choice(AGENTS + AGENTS + COMPETING)
        match kind:
            case "resend" if self._sent[slot]:
                return Resend(slot, pause, chance.choice(self._sent[slot][-5:]))
            case "idempotent":
                return self._send_idempotent(slot, pause, agent)
            case "ask":
                key = f"{slot}.{chance.randrange(3)}"
                return Ask(slot, pause, agent, key, self._new_id(slot), self._script(), chance.uniform(0.5, 5.0))
            case "broadcast":
                return Broadcast(slot, pause, self._new_id(slot))
            case "shout":
                return Shout(slot, pause, self._new_id(slot))
            case "join":
                return Join(slot, pause, chance.choice(LISTENERS))
            case "leave":
                return Leave(slot, pause, LISTENERS[1])
            case "serve":
                return self._serve(slot, pause, chance.choice(AGENTS + COMPETING + LISTENERS))
            case "rest":
                return Rest(slot, pause, agent)
            case "reopen":
                return Reopen(slot, pause)
            case "replay":
                return Replay(slot, pause, agent)
            case "purge":
                return Purge(slot, pause, agent)
            case "plan":
                return Plan(slot, pause, f"plan-{self._new_id(slot)}", agent, chance.choice((1.0, 2.5)))
        return self._send(slot, pause, agent)

    def _serve(self, slot: int, pause: float, agent: str) -> Serve:
        by: Literal["serve", "receive"] = "receive" if self._chance.random() < 0.2 else "serve"
        return Serve(slot, pause, agent, by, self._chance.choice((1, 2, 4)))

    def _new_id(self, slot: int) -> str:
        self._count += 1
        return f"{slot}-{self._count:03}"

    def _send(self, slot: int, pause: float, agent: str) -> Send:
        chance = self._chance
        number = chance.choice((1, 1, 1, 3))
        ids = tuple(self._new_id(slot) for _ in range(number))
        self._sent[slot].extend(ids)
        delayed, mortal = chance.random() < 0.08, chance.random() < 0.08
        large = chance.random() < (0.3 if self._aim in ("blob", "unblob") else 0.04)
        effect = chance.random() < (0.3 if self._aim == "effect" else 0.04)
        return Send(
            slot,
            pause,
            agent,
            key=f"{slot}.{chance.randrange(3)}",  # of one slot: only then is the order of sending known
            ids=ids,
            script=self._script(),
            delay_s=chance.uniform(0.1, 2.0) if delayed and number == 1 else 0.0,
            ttl_s=chance.uniform(0.05, 4.0) if mortal else None,
            is_large=large,
            has_effect=effect,
        )

    def _script(self) -> tuple[Outcome, ...]:
        chance = self._chance
        return chance.choices(
            (
                ("ok",),
                ("slow",),
                ("raise", "ok"),
                ("after", "ok"),
                ("raise", "slow"),
                ("raise",),
                ("reject",),
                ("slow", "raise", "ok"),
            ),
            (50, 15, 12, 4, 4, 5, 4, 6),
        )[0]

    def _send_idempotent(self, slot: int, pause: float, agent: str) -> Send:
        earlier = self._idempotent[slot]
        new = Send(slot, pause, agent, f"{slot}.0", (self._new_id(slot),), idempotency_key=f"once-{slot}-{self._count}")
        if earlier and self._chance.random() < 0.6:
            again = self._chance.choice(earlier)
            return msgspec.structs.replace(again, pause_s=pause, ids=new.ids)
        earlier.append(new)
        return new
