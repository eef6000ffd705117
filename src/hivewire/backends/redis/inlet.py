"""What programs of the reference system send: entries of `multiagent:stream:<agent>`, moved into our queues.

Our place in such a stream stands in our own queue, and is moved on in the same step that stores what was read: an
entry is stored once, in its order, whoever of us reads it and whenever he dies. The stream itself is left to its
owners: it is kept from expiring, and a consumer group of ours in it shows how far we are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.ears import Heard
from hivewire.backends.redis.keys import EXPIRING, FOREIGN_STREAM, INTERNAL_PREFIX, base
from hivewire.backends.redis.link import good
from hivewire.backends.redis.packing import hashed, level, pack_head, ttl_ms
from hivewire.errors import BackendError, ConnectionLost, Undecodable
from hivewire.record import Record, received

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

_FIRST_S = 0.02
_MOST_S = 0.5
_REFUSED_S = 30.0
_AT_ONCE = 200
_KEYS_A_CALL = 100


class Inlet:
    """Looks for news as often as there are some, every half second else."""

    def __init__(self, backend: RedisBackend) -> None:
        self._backend = backend
        self._places: dict[str, bytes] = {}
        """How far each agent's stream has been read, as far as is known here."""
        self._wake = asyncio.Event()
        self._pause_s = _FIRST_S
        self._task: asyncio.Task[None] | None = None
        self._refused = False
        self._to_hear: list[tuple[float, str, Heard]] = []
        """When to try, channel, and who hears it."""

    def start(self) -> None:
        """As long as somebody of this process consumes."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="read streams of the reference")

    def news(self) -> None:
        """One of ours has just written there."""
        self._pause_s = _FIRST_S
        self._wake.set()

    def hear(self, channel: str, heard: Heard) -> None:
        """What is published there, soon: nobody waits for it, should the server not allow it."""
        self._to_hear.append((0.0, channel, heard))
        self._wake.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            agents = sorted(
                {each.queue for each in self._backend.consumers if not each.queue.startswith(INTERNAL_PREFIX)}
            )
            try:
                await self._hear_all()
                moved = await self._look(agents)
                self._refused = False
                self._pause_s = _FIRST_S if moved else min(2 * self._pause_s, _MOST_S)
            except ConnectionLost as error:
                log.debug("streams of the reference cannot be read yet", extra={"error": str(error)})
                self._pause_s = _MOST_S
            except BackendError as error:
                if not self._refused:  # a user with the least rights is not meant to read there
                    log.info("messages of programs of the reference are not taken: %s", error)
                self._refused, self._pause_s = True, _REFUSED_S
            try:
                async with asyncio.timeout(self._pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _hear_all(self) -> None:
        loop = asyncio.get_running_loop()
        waiting, self._to_hear = self._to_hear, []
        for since, channel, heard in waiting:
            if loop.time() < since:
                self._to_hear.append((since, channel, heard))
                continue
            try:
                await self._backend.ears.subscribe(channel, heard)
            except BackendError as error:
                log.info("broadcasts of programs of the reference are not heard: %s", error)
                self._to_hear.append((loop.time() + _REFUSED_S, channel, heard))

    async def _look(self, agents: Sequence[str]) -> int:
        await self._learn([agent for agent in agents if agent not in self._places])
        moved = 0
        for agent in await self._with_news(agents):
            while True:
                count = await self._move(agent)
                moved += count
                if count < _AT_ONCE:
                    break
        return moved

    async def _learn(self, agents: Collection[str]) -> None:
        """How far whoever read before had come: ours, or else those whom ours follow."""
        ask: list[Command] = [("HGET", f"{base(agent)}spec", "inlet") for agent in agents]
        for agent, answer in zip(agents, await self._backend.link.ask(ask), strict=True):
            place = good(answer, f"look at {agent}")
            self._places[agent] = place or await self._begin(agent) or b"0-0"

    async def _begin(self, agent: str) -> bytes | None:
        """Behind what the reference's readers have handled, the first time that ours come."""
        link, group = self._backend.link, self._backend.settings.redis.consumer_group
        (answer,) = await link.ask([scripts.run_on(scripts.INLET_BEGIN, (FOREIGN_STREAM + agent,), group)])
        found = good(answer, f"look at {FOREIGN_STREAM}{agent}")
        if not found:
            return None
        place, behind, added = found
        (answer,) = await link.ask([scripts.run(scripts.INLET_SEAT, base(agent), place, added - behind)])
        seat: bytes | None = good(answer, f"begin with {FOREIGN_STREAM}{agent}")
        return seat

    async def _with_news(self, agents: Sequence[str]) -> list[str]:
        """Those in whose streams something stands behind our place."""
        width = 1 if self._backend.settings.redis.cluster else _KEYS_A_CALL
        pages = [agents[at : at + width] for at in range(0, len(agents), width)]
        ask: list[Command] = []
        for page in pages:
            names, places = [FOREIGN_STREAM + agent for agent in page], [self._places[agent] for agent in page]
            ask.append(("XREAD", "COUNT", 1, "STREAMS", *names, *places))
        found: list[str] = []
        for answer in await self._backend.link.ask(ask):
            for name, _ in good(answer, "read streams of the reference") or ():
                found.append(name.decode().removeprefix(FOREIGN_STREAM))
        return found

    async def _move(self, agent: str) -> int:
        """Take what comes next into our queue."""
        backend, place = self._backend, self._places[agent]
        read = scripts.run_on(scripts.INLET_READ, (FOREIGN_STREAM + agent,), place, _AT_ONCE)
        (answer,) = await backend.link.ask([read])
        entries, added, length = good(answer, f"read {FOREIGN_STREAM}{agent}")
        if not entries:
            return 0
        arguments: list[str | bytes | int] = []
        for record in (_record(agent, entry, backend.settings.message_ttl_s) for entry in entries):
            arguments += [hashed(record.key), level(record), pack_head(record), record.body, ttl_ms(record)]
        spec = backend.sending.defaults(agent)
        is_last = int(len(entries) < _AT_ONCE)
        head = (spec.shards, spec.cap, place, entries[-1][0], added, length, is_last)
        (answer,) = await backend.link.ask([scripts.run(scripts.INLET_STORE, base(agent), *head, *arguments)])
        reached, lost = good(answer, f"store messages of {FOREIGN_STREAM}{agent}")
        if lost:
            log.warning(
                "messages were trimmed from the reference's stream before they were read",
                extra={"agent": agent, "count": lost},
            )
            backend.lost += lost
        self._places[agent] = reached
        if any(arguments[4::5]):
            await backend.link.call("SADD", EXPIRING, agent)
        return len(entries)


def _record(agent: str, entry: Any, ttl_s: float | None) -> Record:
    """As ours would have sent it. What cannot be read is kept as it is: the engine makes it a dead letter."""
    id, flat = entry
    fields: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=False))
    body = fields.get(b"message")
    if body is not None:
        try:
            return received(body, ttl_s)
        except Undecodable:
            pass
    name = f"inlet-{agent}-{id.decode()}"
    sender = fields.get(b"from", b"").decode(errors="replace")
    return Record(
        name,
        sender or name,
        b"\n".join(flat) if body is None else body,
        fields.get(b"type", b"").decode(errors="replace"),
    )


def announced(body: bytes) -> bytes:
    """What is published to the programs of the reference, so that ours know it for their own."""
    return body[:-1] + _MARK if body.endswith(b"}") else body


def is_ours(body: bytes) -> bool:
    return body.endswith(_MARK)


_MARK: Final = b',"via":"hivewire"}'
