"""Where the server is, and what is said to it first."""

from __future__ import annotations

import ssl
import time
from typing import Any, Final

import hiredis
import msgspec

from hivewire.backends.redis import tls
from hivewire.errors import BackendError
from hivewire.settings import RedisSettings

Command = tuple[str | bytes | int | float, ...]
PACKED: Final = "packed"
"""In place of a command's name: its key and all of it, as it goes over the wire, follow."""

_HEARSAY_S: Final = 10.0
"""By then every sentinel has heard of a change, and the old master, too."""

_replaced: dict[tuple[str, str | None], tuple[str, int, float]] = {}
"""By sentinels and name: who was the master until a moment ago, and for how long that counts. Another sentinel may
still name it, and it may still take itself for the master."""


def replaced(settings: RedisSettings, host: str, port: int) -> None:
    """Another server is the master now."""
    _replaced[settings.addr, settings.sentinel_master] = host, port, time.monotonic() + _HEARSAY_S


def pack(command: Command) -> bytes:
    """As it goes over the wire."""
    if command[0] is PACKED:
        return command[2]  # type: ignore[return-value]  # so it was made
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one only
    return packed


class Address(msgspec.Struct, frozen=True):
    """A server, and how to enter it. Secrets are never shown."""

    host: str
    port: int
    settings: RedisSettings

    @classmethod
    def of(cls, settings: RedisSettings) -> Address:
        """The first one that the settings name."""
        return cls.all_of(settings)[0]

    @classmethod
    def all_of(cls, settings: RedisSettings) -> list[Address]:
        found = []
        for each in settings.addr.split(","):
            host, _, port = each.strip().rpartition(":")
            found.append(cls(host.strip("[]"), int(port), settings))
        return found

    def at(self, host: str, port: int) -> Address:
        """Another server, entered in the same way."""
        return Address(host, port, self.settings)

    def is_replaced(self) -> bool:
        *place, until = _replaced.get((self.settings.addr, self.settings.sentinel_master), ("", 0, 0.0))
        return place == [self.host, self.port] and time.monotonic() < until

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.settings.db}"

    def __repr__(self) -> str:
        return f"Address({self})"

    def tls(self) -> ssl.SSLContext | None:
        return tls.context(self.settings)

    def distrust(self, error: ssl.SSLError) -> BackendError:
        return tls.distrust(error, str(self))

    def greeting(self) -> list[Command]:
        """The commands that open a connection."""
        commands: list[Command] = []
        password = self.settings.password.reveal()
        if password:
            user = self.settings.username
            commands.append(("AUTH", user, password) if user else ("AUTH", password))
        if self.settings.db:
            commands.append(("SELECT", self.settings.db))
        return commands


Reply = Any
"""What the server answers: bytes, an int, None, a list of these, or an error."""
