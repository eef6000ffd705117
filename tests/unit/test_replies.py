"""The mailbox for replies, when it cannot be opened."""

from __future__ import annotations

import secrets

import pytest

import hivewire as hw
from hivewire.backend import QueueSpec
from hivewire.backends.memory import MemoryBackend
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, TimedOut
from hivewire.message import REPLY_PREFIX
from hivewire.settings import Settings
from hivewire.testing.virtual_time import virtual


@virtual
async def test_a_mailbox_that_could_not_be_opened_is_opened_for_the_next_request() -> None:
    class Broken(MemoryBackend):
        is_broken = True

        async def declare(self, spec: QueueSpec) -> QueueSpec:
            if self.is_broken and spec.name.startswith(REPLY_PREFIX):
                raise OSError("no file descriptor is left")
            return await super().declare(spec)

    settings = Settings(protocol="inmemory", url=f"memory://{secrets.token_hex(8)}")
    backend = Broken(settings)
    async with Engine(settings, backend) as engine:
        asked = hw.Message(type="task", sender="me", to="coder")
        with pytest.raises(BackendError, match=r"mailbox .* cannot be opened: OSError\('no file") as told:
            await engine.request(asked, timeout_s=2.0)
        assert isinstance(told.value.__cause__, OSError)
        backend.is_broken = False
        with pytest.raises(TimedOut, match="no reply within"):
            await engine.request(asked, timeout_s=2.0)
