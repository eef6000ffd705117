"""Who is there to do the work: the living workers, by their heartbeats."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hivewire.coordination.asked import capabilities_of
from hivewire.coordination.roster import Roster
from hivewire.errors import BackendError, Closed
from hivewire.ids import new_id
from hivewire.message import UNORDERED, Message

if TYPE_CHECKING:
    from hivewire.coordination.worker import Worker
    from hivewire.protocol import Protocol

log = logging.getLogger(__name__)

GROUP: Final = "hivewire-workers"
HEARTBEAT: Final = "heartbeat"
BEAT_S: Final = 2.0
MEETING_S: Final = 1.25 * BEAT_S
"""Whoever is there was heard of by then."""
_MISSED: Final = 3
"""After so many beats that did not come, an instance counts as dead."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one process. `status` is idle, busy or offline; `running` of `concurrency` handlers are under way,
    and `every_s` is how often it is heard of."""

    instance: str
    agent: str
    role: str = "worker"
    capabilities: tuple[str, ...] = ()
    status: str = "idle"
    every_s: float = BEAT_S
    running: int = 0
    concurrency: int = 1


@asynccontextmanager
async def announced(protocol: Protocol, workers: Sequence[Worker], every_s: float = BEAT_S) -> AsyncIterator[None]:
    """The workers are known to all coordinators for as long as this lasts; they leave when it ends.

    A process that dies is missed after three beats. `hivewire worker` and `hivewire.run` do this by themselves, for
    workers that have capabilities.
    """
    instance = f"{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}"

    async def tell(is_here: bool) -> None:
        for worker in workers:
            await _tell(protocol, worker, _member(worker, instance, every_s, is_here))

    async def beat() -> None:
        while True:
            await tell(True)
            await asyncio.sleep(every_s)

    beating = asyncio.create_task(beat(), name="hivewire-heartbeat")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        if not beating.cancelled():
            beating.exception()  # the protocol was closed
        await tell(False)


def _member(worker: Worker, instance: str, every_s: float, is_here: bool) -> Member:
    here = "busy" if worker.running else "idle"
    return Member(
        instance=f"{instance}/{worker.name}",
        agent=worker.name,
        role=worker.role,
        capabilities=worker.capabilities,
        status=here if is_here else "offline",
        every_s=every_s,
        running=worker.running,
        concurrency=worker.concurrency,
    )


async def _tell(protocol: Protocol, worker: Worker, member: Member) -> None:
    message = Message(type=HEARTBEAT, sender=worker.name, to=GROUP, content=msgspec.to_builtins(member), key=UNORDERED)
    try:
        await protocol.broadcast(message, GROUP, durable=False)
    except BackendError as error:  # the next one may come through
        log.info("heartbeat not sent", extra={"worker": worker.name, "error": str(error)})
    except Closed:
        raise
    except Exception:  # of a middleware, say: without the next beats it would count as dead while it works
        log.exception("heartbeat not sent", extra={"worker": worker.name})


class Team:
    """The members known at this moment: those given at the start, who never leave, and those heard of lately."""

    def __init__(self, always: Iterable[tuple[str, Iterable[str]]] = (), *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._roster: Roster | None = None
        self.changed = asyncio.Event()
        """Set whenever somebody joins."""
        self._always: dict[str, Member] = {}
        for name, capabilities in always:
            self.keep(name, capabilities)
        self._heard: dict[str, tuple[Member, float]] = {}

    def keep(self, name: str, capabilities: Iterable[str], role: str = "worker") -> None:
        """Somebody who is there in any case."""
        able = capabilities_of(name, capabilities)
        self._always[name] = Member(instance=f"{name}/always", agent=name, role=role, capabilities=able)
        self._roster = None
        self.changed.set()

    @property
    def is_named(self) -> bool:
        """Whether anybody is there in any case."""
        return bool(self._always)

    def drop(self, name: str) -> bool:
        """Nobody who is there in any case; whether it was."""
        self._roster = None
        return self._always.pop(name, None) is not None

    def hear(self, content: Any) -> None:
        """Take in a heartbeat. Raises `msgspec.ValidationError` for what is none."""
        member = msgspec.convert(content, Member)
        known = self._heard.get(member.instance)
        if member.status == "offline":
            self._heard.pop(member.instance, None)
        else:
            self._heard[member.instance] = (member, self._clock())
        if known is None or _place(known[0]) != _place(member) or member.status == "offline":
            self._roster = None
            self.changed.set()

    def members(self) -> list[Member]:
        """Who is there now. An agent that is there in any case counts as one only while none of it is heard of."""
        now = self._clock()
        late = [name for name, (member, at) in self._heard.items() if now - at > _MISSED * member.every_s]
        for name in late:
            del self._heard[name]
            self._roster = None
        heard = [member for member, _ in self._heard.values()]
        agents = {member.agent for member in heard}
        return [*(member for name, member in self._always.items() if name not in agents), *heard]

    @property
    def roster(self) -> Roster:
        """Their agents by capability."""
        members = self.members()
        if self._roster is None:
            found: dict[str, set[str]] = {}
            for member in (*self._always.values(), *members):
                found.setdefault(member.agent, set()).update(member.capabilities)
            self._roster = Roster((agent, sorted(found[agent])) for agent in sorted(found))
        return self._roster


def _place(member: Member) -> tuple[str, tuple[str, ...]]:
    """What decides who gets which subtask."""
    return member.agent, member.capabilities
