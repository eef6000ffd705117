"""Volatile broadcast: to the live processes only, without acknowledgement."""

from __future__ import annotations

import asyncio
import logging

from hivewire.codec import decode, encode
from hivewire.engine.core import Core
from hivewire.engine.inbox import Inbox
from hivewire.engine.subscriptions import Subscriptions
from hivewire.errors import BackendError, Undecodable
from hivewire.message import Message

log = logging.getLogger(__name__)

_LISTEN_S = 30.0
_RETRY_S = 0.2


class Volatile:
    """One listener a group; it hands messages to the inboxes of the members in this process."""

    def __init__(self, core: Core, subscriptions: Subscriptions) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self._inboxes: dict[str, dict[Inbox, None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, group: str, inbox: Inbox) -> None:
        """The inbox gets what is published from now on."""
        self._inboxes.setdefault(group, {})[inbox] = None
        if group not in self._tasks:
            await self._core.backend.listen(f"group/{group}", 0.0)  # from now on
            if group not in self._tasks:
                self._tasks[group] = self._core.tasks.start(self._listen(group), f"listen {group}")

    async def publish(self, group: str, message: Message) -> None:
        body = encode(message, self._core.settings.max_message_size_bytes)
        await self._core.backend.publish(f"group/{group}", body)

    async def _listen(self, group: str) -> None:
        while True:
            try:
                bodies = await self._core.backend.listen(f"group/{group}", _LISTEN_S)
                members = await self._subscriptions.members(group) if bodies else []
            except BackendError as error:
                log.warning("cannot listen yet", extra={"group": group, "error": str(error)})
                await asyncio.sleep(_RETRY_S)
                continue
            for body in bodies:
                self._hand_on(group, body, members)

    def _hand_on(self, group: str, body: bytes, members: list[str]) -> None:
        try:
            message = decode(body)
        except Undecodable as error:
            log.warning("not a message", extra={"group": group, "error": str(error)})
            return
        for inbox in self._inboxes[group]:
            member = inbox.queue
            if member in members:
                copy = message.replace(
                    id=f"{message.id}@{member}", to=member, metadata={**message.metadata, "group": group}
                )
                inbox.push_volatile(copy.id, encode(copy, self._core.settings.max_message_size_bytes), copy.type)

    def leave(self, inbox: Inbox) -> None:
        for inboxes in self._inboxes.values():
            inboxes.pop(inbox, None)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
