"""Who takes what: agents' types, groups and modes, kept in the store's catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from hivewire.backend import Backend, QueueSpec
from hivewire.errors import Unsupported
from hivewire.protocol import Subscription

AGENT_PREFIX = "agent/"
GROUP_PREFIX = "group/"
ANY_TYPE = "*"
"""Subscribed as a type: every type."""


class _Agent(msgspec.Struct, frozen=True, omit_defaults=True):
    types: list[str] | None = None
    """None: it never named a type and takes all."""
    groups: list[str] = []


_TAKES_ALL = _Agent()
_MOST_READ = 1_000
_decoder = msgspec.json.Decoder(_Agent)


class _Group(msgspec.Struct, frozen=True):
    members: dict[str, list[int]] = {}
    """Where in the group's queue each one joined: an older message is not for it, whoever copies it when."""
    controls: list[str] = []
    """The ids of the newest joins and leaves, so that who sent one sees that it is through."""


_groups = msgspec.json.Decoder(_Group)
_MOST_CONTROLS = 256
_FORGOTTEN_S = 1.0


class Announced(NamedTuple):
    """A join or leave that was put into the group's queue."""

    agent: str
    control: str
    joined: bool


class Subscriptions:
    """A cache of the catalogue, read anew whenever the backend's epoch has moved."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, _Agent] = {}
        self._read_once: dict[bytes, _Agent] = {}
        self._epoch = -1
        self.modes: dict[str, QueueSpec] = {}

    async def agent(self, name: str) -> _Agent:
        """As fresh as the last fetch."""
        if self._epoch != self._backend.epoch:
            self._known.clear()
            self._epoch = self._backend.epoch
        known = self._known.get(name)
        return known if known is not None else await self.fresh(name)

    async def fresh(self, name: str) -> _Agent:
        """Asked of the store now."""
        entry = await self._backend.get(AGENT_PREFIX + name)
        found = self._read(entry.value) if entry.version and entry.value else _TAKES_ALL
        self._known[name] = found
        return found

    def _read(self, value: bytes) -> _Agent:
        """One object for all agents that take the same: often there are tens of thousands."""
        found = self._read_once.get(value)
        if found is None:
            if len(self._read_once) >= _MOST_READ:
                self._read_once.clear()
            found = self._read_once[value] = _decoder.decode(value)
        return found

    def accepts(self, name: str, type: str) -> bool:
        """False also when nothing is known here: the caller asks `fresh` before it refuses."""
        if self._epoch != self._backend.epoch:
            return False
        known = self._known.get(name)
        return known is not None and (known.types is None or type in known.types or ANY_TYPE in known.types)

    async def accepts_fresh(self, name: str, type: str) -> bool:
        if self._epoch != self._backend.epoch:
            self._known.clear()
            self._epoch = self._backend.epoch
        known = await self.fresh(name)
        return known.types is None or type in known.types or ANY_TYPE in known.types

    async def describe(self, name: str) -> Subscription:
        found = await self.fresh(name)
        mode = next((spec.mode for spec in await self._backend.queues() if spec.name == name), None)
        return Subscription(agent=name, types=found.types, groups=tuple(found.groups), mode=mode)

    async def change(self, name: str, change: Callable[[_Agent], _Agent]) -> None:
        await update(self._backend, AGENT_PREFIX + name, lambda value: _encode(change(_read_agent(value))))
        self._known.pop(name, None)
        await self.fresh(name)

    async def add(self, name: str, types: Sequence[str], groups: Sequence[str]) -> None:
        present = await self.fresh(name)
        if set(types) <= set(present.types or ()) and set(groups) <= set(present.groups):
            return  # nothing new: do not make every process read the catalogue again

        def change(agent: _Agent) -> _Agent:
            named = agent.types if not types else sorted({*(agent.types or ()), *types})
            return _Agent(types=named, groups=sorted({*agent.groups, *groups}))

        await self.change(name, change)

    async def remove(self, name: str, types: Sequence[str], groups: Sequence[str], *, everything: bool) -> None:
        def change(agent: _Agent) -> _Agent:
            if everything:
                return _Agent(types=[], groups=[])
            left = agent.types
            if types and agent.types is not None:
                left = [type for type in agent.types or () if type not in types]
            return _Agent(types=left, groups=[group for group in agent.groups if group not in groups])

        await self.change(name, change)

    async def forget(self, name: str) -> None:
        """As if the agent had never been."""
        entry = await self._backend.get(AGENT_PREFIX + name)
        if entry.version:
            await self._backend.put(AGENT_PREFIX + name, b"", entry.version, ttl_s=_FORGOTTEN_S)
        self._known.pop(name, None)

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        found = await self._backend.declare(spec)
        if spec.mode is not None and found.mode != spec.mode:
            raise Unsupported(
                f"subscribe {spec.name} as {spec.mode}: its queue is {found.mode}; the mode belongs to the queue"
            )
        return found

    async def members(self, group: str) -> list[str]:
        return sorted((await self._group(group)).members)

    async def members_at(self, group: str, at: int | str) -> list[str]:
        """Who had joined before this place of the group's queue, and is still there."""
        joined = (await self._group(group)).members
        place = _place(at)
        return sorted(agent for agent, since in joined.items() if since < place)

    async def _group(self, group: str) -> _Group:
        entry = await self._backend.get(GROUP_PREFIX + group)
        return _groups.decode(entry.value) if entry.value else _Group()

    async def in_force(self, group: str, announced: Iterable[Announced]) -> list[Announced]:
        """Those joins and leaves that have been carried out; somebody else may have undone them since."""
        known = await self._group(group)
        controls = set(known.controls)
        return [one for one in announced if one.control in controls or (one.agent in known.members) == one.joined]

    async def set_member(self, group: str, agent: str, control: str, at: int | str, *, joined: bool) -> None:
        def change(value: bytes) -> bytes:
            known = _groups.decode(value) if value else _Group()
            if control in known.controls:
                return value  # it was carried out before
            members = {member: since for member, since in known.members.items() if joined or member != agent}
            if joined:
                members.setdefault(agent, _place(at))
            return msgspec.json.encode(_Group(members, [*known.controls, control][-_MOST_CONTROLS:]))

        await update(self._backend, GROUP_PREFIX + group, change)


def _place(at: int | str) -> list[int]:
    """A position of a shard as numbers that can be compared: 7, or an entry id such as "1700-3"."""
    return [at] if isinstance(at, int) else [int(part) for part in at.split("-")]


def _read_agent(value: bytes) -> _Agent:
    return _decoder.decode(value) if value else _Agent()


def _encode(agent: _Agent) -> bytes:
    return _same(msgspec.json.encode(agent))


@lru_cache(_MOST_READ)
def _same(value: bytes) -> bytes:
    """One object for all that are equal."""
    return value


async def update(backend: Backend, key: str, change: Callable[[bytes], bytes]) -> None:
    """Read, change, write; from the start when somebody else was quicker."""
    while True:
        entry = await backend.get(key)
        value = change(entry.value)
        if (value == entry.value and entry.version) or await backend.put(key, value, entry.version) is not None:
            return
