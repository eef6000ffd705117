"""Broadcast. A group is a queue of one key whose records are messages, joins and leaves; whoever holds
it copies messages into the members' own queues. So who joined after a send gets nothing old."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hivewire.backend import Append, Record, Room
from hivewire.codec import encode
from hivewire.delivery import Delivery
from hivewire.engine.admission import AllTypes
from hivewire.engine.core import Core, lane_key
from hivewire.engine.crew import Crew
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.inbox import Inbox
from hivewire.engine.subscriptions import Announced, Subscriptions
from hivewire.errors import BackendError, Closed, HivewireError
from hivewire.ids import new_id
from hivewire.message import Message

GROUP_QUEUE_PREFIX = "~group/"
JOIN, LEAVE = "hivewire.join", "hivewire.leave"
_POLL_S = 0.02


class Groups:
    """Runs the fan-out of every group that this process has to do with."""

    def __init__(self, core: Core, subscriptions: Subscriptions) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self._inboxes: dict[str, Inbox] = {}
        self._starting = asyncio.Lock()
        self._waiting: dict[str, dict[Announced, asyncio.Future[None]]] = {}
        self._looking: set[str] = set()

    async def ensure(self, group: str) -> None:
        """This process takes part in the fan-out of the group."""
        if group in self._inboxes:
            return
        async with self._starting:
            if group in self._inboxes:
                return
            inbox = Inbox(self._core, GROUP_QUEUE_PREFIX + group, AllTypes(), competing=False)
            await inbox.start()
            self._inboxes[group] = inbox

            async def handle(delivery: Delivery) -> None:
                await self._fan_out(group, delivery)

            crew = Crew(inbox, handle, concurrency=1, timeout_s=self._core.settings.handler_timeout_s)
            self._core.tasks.start(crew.run(), f"group {group}")

    async def announce(self, group: str, agent: str, *, joined: bool) -> None:
        """Returns when it is in force."""
        await self.ensure(group)
        control = Message(type=JOIN if joined else LEAVE, sender=agent, to=agent, id=new_id())
        body = encode(control, 1024)
        record = Record(control.id, group, body, type=control.type, sender=agent)
        await append(self._core, [Append(GROUP_QUEUE_PREFIX + group, [record], room=Room.ALWAYS)])
        await self._until_in_force(group, Announced(agent, control.id, joined))

    async def _until_in_force(self, group: str, announced: Announced) -> None:
        """Whoever holds the group's queue may be another process, so it is looked for: by one for all who wait."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(group, {})
        waiting[announced] = done
        try:
            if group not in self._looking:
                self._core.tasks.start(self._look(group, waiting), f"joins of {group}")
                self._looking.add(group)
            await done
        finally:
            waiting.pop(announced, None)

    async def _look(self, group: str, waiting: dict[Announced, asyncio.Future[None]]) -> None:
        error: HivewireError = Closed(f"join {group}: the protocol was closed")
        try:
            while waiting:
                for announced in await self._subscriptions.in_force(group, list(waiting)):
                    done = waiting.pop(announced, None)
                    if done is not None and not done.done():
                        done.set_result(None)
                await asyncio.sleep(_POLL_S)
        except BackendError as failed:
            error = failed
        finally:
            self._looking.discard(group)
            for left in waiting.values():
                if not left.done():
                    left.set_exception(error)
            waiting.clear()

    async def _fan_out(self, group: str, delivery: Delivery) -> None:
        assert isinstance(delivery, EngineDelivery)
        message, at = delivery.message, delivery.fetched.at
        if message.type in (JOIN, LEAVE):
            await self._subscriptions.set_member(group, message.sender, message.id, at, joined=message.type == JOIN)
            return
        copies = []
        for member in await self._subscriptions.members_at(group, at):
            copy = message.replace(
                id=f"{message.id}@{member}", to=member, metadata={**message.metadata, "group": group}
            )
            body = encode(copy, self._core.settings.max_message_size_bytes)
            record = Record(
                copy.id,
                lane_key(copy, None),
                body,
                type=copy.type,
                sender=copy.sender,
                ttl_s=copy.ttl_s,
                priority=copy.priority,
                replay=delivery.replay,
            )
            copies.append(Append(member, [record], room=Room.ALWAYS))
        # Never refused: one member that is away for long must not hold up the others.
        await append(self._core, copies)
        if self._core.trail.all:
            members = ", ".join(entry.queue for entry in copies) or "nobody: the group is empty"
            self._core.trail.note("copied", group, message.id, replay=delivery.replay, text=f"to {members}")
            for entry in copies:
                text = f"as a member of group {group}"
                self._core.trail.note("stored", entry.queue, entry.records[0].id, replay=delivery.replay, text=text)

    async def close(self) -> None:
        for inbox in self._inboxes.values():
            await inbox.close()
        self._inboxes.clear()


async def append(core: Core, batch: Sequence[Append]) -> None:
    """Store, or raise the first problem."""
    if core.claims is not None:
        batch = await core.claims.put_away(batch, 30.0)
    for problem in (await core.backend.append(batch)).values():
        if isinstance(problem, Exception):
            raise problem
