"""Faults that are planned by a seed and strike work in flight on the line between a member and its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Literal, TypeVar

import msgspec

from hivewire.errors import ConnectionLost

_T = TypeVar("_T")

FaultKind = Literal["lose", "double", "delay", "fail", "revoke", "freeze", "crash"]
Place = Literal["append", "fetch", "start", "settle", "save", "handle", "write"]
"""`write` is that of a ledger."""
Moment = Literal["early", "late"]

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


class Faults:
    """The faults of one run: which are armed, which have struck, and what they do to a member."""

    def __init__(self, plan: Sequence[Fault]) -> None:
        self._waiting = sorted(plan, key=lambda fault: fault.after)
        self._armed: list[Fault] = []
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
            self._armed.append(self._waiting.pop(0))

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        self._waiting.clear()
        self._armed.clear()
        self.down_until = 0.0

    def take(self, place: Place, moment: Moment, slot: int, weight: int) -> Fault | None:
        """The armed fault that strikes here and now, if any. `weight`: how many records are in flight."""
        if not self._armed or not weight:
            return None
        for index, fault in enumerate(self._armed):
            if fault.place == place and fault.moment == moment and fault.slot in (None, slot):
                self.struck.append(self._armed.pop(index))
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
        self._chance = chance
        self.is_cut = False
        """The process is dead: nothing gets through any more."""

    async def call(
        self,
        place: Place | None,
        apply: Callable[[], _T],
        *,
        weight: int = 0,
        weigh: Callable[[_T], int] | None = None,
        keep: Callable[[_T], None] | None = None,
    ) -> _T:
        """Do `apply` at the store. `weight` is the number of records in the request, `weigh` that in the
        answer; `keep` gets an answer that did not arrive (lost on the way, or the caller was cancelled)."""
        await self._travel()
        doubled = False
        if place is not None:
            doubled = await self._strike(place, "early", weight)
        self._check_line()
        answer = apply()
        if doubled:
            apply()
        try:
            if place is not None:
                await self._strike(place, "late", weigh(answer) if weigh else weight)
            await self._travel()
            self._check_line()
        except (ConnectionLost, asyncio.CancelledError):
            if keep is not None:
                keep(answer)
            raise
        return answer

    def _check_line(self) -> None:
        if self.is_cut:
            raise ProcessIsDead(f"{self.name} is dead")
        if self.faults.down_until and asyncio.get_running_loop().time() < self.faults.down_until:
            raise ConnectionLost("the store refuses everything for a while")

    async def _travel(self) -> None:
        if not self.is_cut and self._chance.random() < 0.3:
            await asyncio.sleep(self._chance.random() * 0.01)

    async def _strike(self, place: Place, moment: Moment, weight: int) -> bool:
        """Let an armed fault happen. True: the request is to be done twice."""
        fault = self.faults.take(place, moment, self.slot, weight)
        if fault is None:
            return False
        await self.suffer(fault)
        if fault.kind == "lose":
            raise ConnectionLost(f"{place}: the {'request' if moment == 'early' else 'answer'} was lost")
        return fault.kind == "double"

    async def suffer(self, fault: Fault) -> None:
        """What the fault does to this process, apart from losing or doubling a request."""
        if fault.kind == "delay":
            await asyncio.sleep(fault.length_s)
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
        fault = self.faults.take("handle", moment, self.slot, 1)
        if fault is not None:
            await self.suffer(fault)
