"""What is published and not stored: whoever does not listen just then never has it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hivewire.backends.redis.address import Command
from hivewire.backends.redis.inlet import Inlet, announced, is_ours
from hivewire.backends.redis.keys import CHANNEL, FOREIGN_CHANNEL, GROUP_CHANNEL
from hivewire.backends.redis.link import good

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

_MOST_HEARD: Final = 10_000


class Channel:
    """What this process has heard and nobody has taken yet."""

    def __init__(self) -> None:
        self.bodies: deque[bytes] = deque(maxlen=_MOST_HEARD)
        self.news = asyncio.Event()

    def heard(self, body: bytes | None) -> None:
        if body is not None:
            self.bodies.append(body)
            self.news.set()

    def heard_of_others(self, body: bytes | None) -> None:
        """On the channel of the reference's programs, where ours speak, too."""
        if body is not None and not is_ours(body):
            self.heard(body)

    async def take(self, wait_s: float) -> Sequence[bytes]:
        if not self.bodies and wait_s > 0:
            self.news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self.news.wait()
            except TimeoutError:
                return ()
        found = list(self.bodies)
        self.bodies.clear()
        return found


class Channels:
    """All of one process; each is listened to from the first time that somebody asks for it."""

    def __init__(self, backend: RedisBackend, inlet: Inlet | None) -> None:
        self._backend = backend
        self._inlet = inlet
        self._by_name: dict[str, Channel] = {}

    async def publish(self, channel: str, body: bytes) -> None:
        commands: list[Command] = [("PUBLISH", CHANNEL + channel, body)]
        if self._backend.settings.redis.interop and channel.startswith(GROUP_CHANNEL):
            commands.append(("PUBLISH", FOREIGN_CHANNEL + channel.removeprefix(GROUP_CHANNEL), announced(body)))
        for answer in await self._backend.link.post(commands):
            good(answer, f"publish on {channel}")

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        self._backend.check_usable()
        heard = self._by_name.get(channel)
        if heard is None:
            heard = self._by_name[channel] = Channel()
            try:
                await self._backend.ears.subscribe(CHANNEL + channel, heard.heard)
                if self._inlet is not None and channel.startswith(GROUP_CHANNEL):
                    theirs = FOREIGN_CHANNEL + channel.removeprefix(GROUP_CHANNEL)
                    self._inlet.hear(theirs, heard.heard_of_others)
            except BaseException:
                self._by_name.pop(channel, None)
                raise
        return await heard.take(wait_s)
