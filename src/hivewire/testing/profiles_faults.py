"""Faults that are planned by a seed and strike work in flight on the line between a member and its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Literal, TypeVar

import msgspec

from hivewire.errors import ConnectionLost
from hivewire.testing.virtual_loop import running_loop

_T = TypeVar("_T")
_SLOW: Final = 0.3
"""So many of the ways to the store and back take time."""
_MOST_TRAVEL_S: Final = 0.01

FaultKind = Literal["lose", "double", "delay", "fail", "revoke", "freeze", "crash"]
Place = Literal[
    "append", "fetch", "start", "settle", "again", "dead", "save", "handle",
    "renew", "release", "leave", "declare", "drop", "subscribe", "schedule", "effect", "trail",
    "revive", "purge", "bury", "publish", "blob", "unblob", "write",
]  # fmt: skip
"""What a request does: `again` and `dead` are settlements that put a record back, or away; `renew` keeps leases, and
`release` and `leave` give them up; `subscribe`, `schedule`, `effect` and `trail` write to the catalogue; `blob` stores
a large content and `unblob` deletes it; `write` is that of a ledger."""
Moment = Literal["early", "late"]
Point = tuple[Place, Moment]

_EVERYWHERE: Final[tuple[Place, ...]] = (
    "append", "fetch", "dead", "renew", "leave", "declare", "drop", "subscribe", "schedule", "effect", "trail",
    "revive", "purge", "bury", "publish", "blob", "unblob",
)  # fmt: skip
_HERE: Final[dict[str, tuple[Place, ...]]] = {
    "sql": ("start", "settle", "again"),
    "redis": ("start", "settle", "again", "release"),
    "kafka": ("save", "release"),
}


def points(profile: str) -> list[Point]:
    """Before and after each kind of write, and of claim, that the engine makes of such a store."""
    places = sorted({*_EVERYWHERE, *_HERE[profile]} - ({"bury"} if profile == "kafka" else set()))
    return [(place, moment) for place in places for moment in ("early", "late")]


PLACES: Final[dict[FaultKind, tuple[tuple[Place, Moment], ...]]] = {
    "lose": (
        ("append", "early"),
        ("append", "late"),
        ("fetch", "late"),
        ("settle", "early"),
        ("settle", "late"),
        ("start", "early"),
        ("start", "late"),
        ("save", "early"),
        ("save", "late"),
    ),
    "double": (("append", "early"),),
    "delay": (("append", "early"), ("append", "late"), ("fetch", "late"), ("settle", "early"), ("settle", "late")),
    "fail": (("append", "early"), ("settle", "early"), ("fetch", "late"), ("handle", "early"), ("save", "early")),
    "revoke": (("handle", "early"), ("settle", "early"), ("fetch", "late")),
    "freeze": (
        ("handle", "early"),
        ("handle", "late"),
        ("append", "early"),
        ("settle", "early"),
        ("save", "early"),  # a commit that leaves when the shard is somebody else's already
        ("fetch", "late"),
    ),
    "crash": (
        ("handle", "early"),
        ("handle", "late"),
        ("append", "early"),
        ("append", "late"),
        ("fetch", "late"),
        ("start", "late"),
        ("settle", "early"),
        ("settle", "late"),
        ("save", "early"),
        ("save", "late"),
    ),
}
"""Where each kind can strike. `early`: before the request reaches the store, or as a handler begins;
`late`: after the store has done it and before the answer, or as a handler ends."""


class Fault(msgspec.Struct, frozen=True):
    """One planned fault. It is armed when `after` operations have begun and strikes the first request of
    its place that carries work, so that no fault hits the air."""

    kind: FaultKind
    place: Place
    moment: Moment
    after: int
    length_s: float
    slot: int | None = None
    """The member that it waits for; None: whoever comes first."""

    @property
    def point(self) -> Point:
        return self.place, self.moment


class Faults:
    """The faults of one run: which are armed, which have struck, and what they do to a member."""

    def __init__(self, plan: Sequence[Fault]) -> None:
        self._waiting = sorted(plan, key=lambda fault: fault.after)
        self.armed: list[Fault] = []
        self.struck: list[Fault] = []
        self.down_until = 0.0
        """The store refuses everything until then, by the loop's time."""
        self.freeze: Callable[[str, float], None] = _nobody
        self.crash: Callable[[str, float], None] = _nobody
        self.fail: Callable[[float], None] = lambda length_s: None
        self.revoke: Callable[[str, float], None] = _nobody

    def arm(self, operations: int) -> None:
        """So many operations of the program have begun."""
        while self._waiting and self._waiting[0].after <= operations:
            self.armed.append(self._waiting.pop(0))

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self._waiting.clear()
        self.armed.clear()
        self.down_until = 0.0

    def take(self, places: Sequence[Place], moment: Moment, slot: int, weight: int) -> Fault | None:
        """The armed fault that strikes here and now, if any. `weight`: how much is in flight."""
        if not self.armed or not weight:
            return None
        for index, fault in enumerate(self.armed):
            if fault.place in places and fault.moment == moment and fault.slot in (None, slot):
                self.struck.append(self.armed.pop(index))
                return fault
        return None


def _nobody(name: str, length_s: float) -> None:
    raise RuntimeError(f"nobody runs the process {name}")


class ProcessIsDead(ConnectionLost):
    """What the rest of a killed process gets from the store while it is put away."""


class Wire:
    """The line from one member's process to the store. Requests take time, so concurrent ones overtake
    each other; what was awaited is stored before what is sent next."""

    def __init__(self, faults: Faults, chance: Random, name: str, slot: int) -> None:
        self.faults = faults
        self.name = name
        self.slot = slot
        self._loop = running_loop()
        self._chance = chance
        self.is_cut = False
        """The process is dead: nothing gets through any more."""

    async def call(
        self,
        places: Sequence[Place],
        apply: Callable[[], _T],
        *,
        weight: int = 1,
        weigh: Callable[[_T], int] | None = None,
        keep: Callable[[_T], None] | None = None,
    ) -> _T:
        """Do `apply` at the store. `places` says what it does: a fault that waits for one of them strikes. `weight`
        is the number of records in the request, if it has any, and `weigh` that in the answer; `keep` gets an answer
        that did not arrive (lost on the way, or the caller was cancelled)."""
        chance, faults = self._chance, self.faults
        if not self.is_cut and chance.random() < _SLOW:
            await self._loop.pause(chance.random() * _MOST_TRAVEL_S)
        doubled = False
        if places and faults.armed:
            doubled = await self._strike(places, "early", weight)
        if self.is_cut or faults.down_until:
            self._check_line()
        answer = apply()
        if doubled:
            apply()
        try:
            if places and faults.armed:
                await self._strike(places, "late", weigh(answer) if weigh else weight)
            if not self.is_cut and chance.random() < _SLOW:
                await self._loop.pause(chance.random() * _MOST_TRAVEL_S)
            if self.is_cut or faults.down_until:
                self._check_line()
        except (ConnectionLost, asyncio.CancelledError):
            if keep is not None:
                keep(answer)
            raise
        return answer

    def _check_line(self) -> None:
        if self.is_cut:
            raise ProcessIsDead(f"{self.name} is dead")
        if self._loop.time() < self.faults.down_until:
            raise ConnectionLost("the store refuses everything for a while")

    async def _strike(self, places: Sequence[Place], moment: Moment, weight: int) -> bool:
        """Let an armed fault happen. True: the request is to be done twice."""
        fault = self.faults.take(places, moment, self.slot, weight)
        if fault is None:
            return False
        await self.suffer(fault)
        if fault.kind == "lose":
            raise ConnectionLost(f"{fault.place}: the {'request' if moment == 'early' else 'answer'} was lost")
        return fault.kind == "double"

    async def suffer(self, fault: Fault) -> None:
        """What the fault does to this process, apart from losing or doubling a request."""
        if fault.kind == "delay":
            await self._loop.pause(fault.length_s)
        elif fault.kind == "fail":
            self.faults.down_until = asyncio.get_running_loop().time() + fault.length_s
            self.faults.fail(fault.length_s)
        elif fault.kind == "revoke":
            self.faults.revoke(self.name, fault.length_s)
        elif fault.kind == "freeze":
            self.faults.freeze(self.name, fault.length_s)
            await asyncio.sleep(0)  # here it stands still
        elif fault.kind == "crash":
            self.faults.crash(self.name, fault.length_s)
            await asyncio.get_running_loop().create_future()  # and never goes on

    async def at_handler(self, moment: Moment) -> None:
        """A handler begins or ends in this process."""
        fault = self.faults.take(("handle",), moment, self.slot, 1)
        if fault is not None:
            await self.suffer(fault)
