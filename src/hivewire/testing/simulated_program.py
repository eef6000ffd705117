"""From a seed to a program for coordinators and workers: tasks with their plans, what the handlers do, and faults."""

from __future__ import annotations

from random import Random
from typing import Any, Final, Literal

import msgspec

from hivewire.testing.profiles_faults import Fault, FaultKind, Moment, Place

COORDINATORS: Final = 2
WORKERS: Final = 2
LEASE_S: Final = 2.0
RUNS: Final = 2
TEAM: Final = {"ant": ("dig", "carry"), "bee": ("dig",)}
"""The agents and their capabilities; every worker process serves all of them."""
LEAST_OPERATIONS: Final = 100
FAULTS_TO_STRIKE: Final = 5
HANG_S: Final = 9.0
"""How long a handler takes that is too late."""
TIMEOUT_S: Final = 2.0

Deed = Literal["ok", "slow", "raise", "reject", "hang", "grow", "back"]
"""What a handler does: raises at the first start of a message, is refused, answers too late, returns further
subtasks, sends back what it depends on once."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Somebody has a task done. Without `planned` the plan is given; else a model makes it."""

    run: str
    pause_s: float
    planned: bool
    timeout_s: float | None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    run: str
    pause_s: float


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Somebody reads the run's events from the beginning, slowly or not, changing the coordinator in between."""

    run: str
    pause_s: float
    slowness_s: float


Step = Start | Cancel | Watch


class Program(msgspec.Struct, frozen=True):
    """All that a simulation depends on."""

    profile: str
    seed: int
    draw: int
    steps: tuple[Step, ...]
    plans: dict[str, list[list[dict[str, Any]]]]
    """The subtasks of each run: the first plan, and those that a model gives when it is asked again."""
    deeds: dict[str, dict[str, Deed]]
    """By run and subtask."""
    faults: tuple[Fault, ...]
    spare: Start
    """Somebody has one more task done when the others ended before enough had happened."""


_KINDS: Final[dict[FaultKind, int]] = {"lose": 4, "double": 1, "delay": 2, "fail": 1, "freeze": 4, "crash": 6}
_PLACES: Final[dict[FaultKind, tuple[tuple[Place, Moment], ...]]] = {
    "lose": (("write", "early"), ("write", "late"), ("append", "early"), ("append", "late"), ("fetch", "late")),
    "double": (("append", "early"),),
    "delay": (("write", "early"), ("write", "late"), ("append", "early"), ("append", "late"), ("fetch", "late")),
    "fail": (("append", "early"), ("fetch", "late"), ("handle", "early")),
    "freeze": (
        ("write", "early"),
        ("write", "late"),
        ("append", "early"),
        ("append", "late"),
        ("fetch", "late"),
        ("handle", "early"),
        ("handle", "late"),
    ),
    "crash": (
        ("write", "early"),
        ("write", "late"),
        ("write", "early"),
        ("write", "late"),
        ("append", "early"),
        ("append", "late"),
        ("fetch", "late"),
        ("handle", "early"),
        ("handle", "late"),
    ),
}
_DEEDS: Final[dict[Deed, int]] = {"ok": 50, "slow": 20, "raise": 10, "reject": 4, "hang": 3, "grow": 4, "back": 6}
ARMED: Final = 60
"""The last fault is armed when so many ledger writes and handlers have begun."""


def draw_program(profile: str, seed: int, draw: int = 0) -> Program:
    """The program of a seed. `draw` counts the tries until enough faults strike."""
    chance = Random(f"simulated/{profile}/{seed}/{draw}")
    steps: list[Step] = []
    plans: dict[str, list[list[dict[str, Any]]]] = {}
    deeds: dict[str, dict[str, Deed]] = {}
    for number in range(RUNS):
        run = f"run-{number}"
        planned = chance.random() < 0.4
        deeds[run] = {}
        plans[run] = [_subtasks(chance, chr(ord("a") + version), deeds[run]) for version in range(3)]
        is_short = chance.random() < 0.06
        steps.append(Start(run, chance.random(), planned, chance.uniform(2.0, 8.0) if is_short else None))
        if chance.random() < 0.4:
            steps.append(Watch(run, chance.random(), chance.choice((0.0, 0.05, 0.3))))
        if number == 0 and chance.random() < 0.2:
            steps.append(Cancel(run, chance.uniform(0.2, 4.0)))
    faults = tuple(_fault(chance) for _ in range(chance.randint(7, 10)))
    spare = Start(f"run-{RUNS}", 0.0, False, None)
    deeds[spare.run] = {}
    plans[spare.run] = [_subtasks(chance, chr(ord("a") + version), deeds[spare.run]) for version in range(3)]
    return Program(profile, seed, draw, tuple(steps), plans, deeds, faults, spare)


def _subtasks(chance: Random, letter: str, deeds: dict[str, Deed]) -> list[dict[str, Any]]:
    """Subtasks in any order, each of which waits for some of those before it."""
    count = chance.randint(7, 10)
    names = [f"{letter}{n}" for n in range(count)]
    found: list[dict[str, Any]] = []
    for n, name in enumerate(names):
        after = [other for other in names[:n] if chance.random() < 1.2 / max(n, 1)]
        deed = chance.choices(list(_DEEDS), list(_DEEDS.values()))[0]
        if deed == "back" and not after:
            deed = "ok"
        deeds[name] = deed
        subtask: dict[str, Any] = {
            "name": name,
            "assigned_to": chance.choice(("dig", "dig", "carry")),
            "dependencies": after,
            "priority": chance.randint(1, 10),
        }
        found.append(subtask | ({"timeout_s": TIMEOUT_S} if deed == "hang" else {}))
    chance.shuffle(found)
    return found


def _fault(chance: Random) -> Fault:
    kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
    place, moment = chance.choice(_PLACES[kind])
    shortest, longest = {
        "delay": (0.05, 1.5),
        "fail": (0.2, LEASE_S * 1.5),
        "freeze": (LEASE_S * 0.4, LEASE_S * 2.5),
        "crash": (0.1, LEASE_S * 1.5),
    }.get(kind, (0.1, 1.0))
    return Fault(kind, place, moment, chance.randrange(ARMED), chance.uniform(shortest, longest))
