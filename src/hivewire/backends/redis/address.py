"""Where the server is, and what is said to it first."""

from __future__ import annotations

import ssl
from typing import Any

import hiredis
import msgspec

from hivewire.settings import RedisSettings

Command = tuple[str | bytes | int | float, ...]


def pack(command: Command) -> bytes:
    """As it goes over the wire."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows tuples of one only
    return packed


class Address(msgspec.Struct, frozen=True):
    """A server, and how to enter it. Secrets are never shown."""

    host: str
    port: int
    settings: RedisSettings

    @classmethod
    def of(cls, settings: RedisSettings) -> Address:
        host, _, port = settings.addr.rpartition(":")
        return cls(host.strip("[]"), int(port), settings)

    def __str__(self) -> str:
        return f"{self.settings.addr}/{self.settings.db}"

    def __repr__(self) -> str:
        return f"Address({self})"

    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.settings.tls else None

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
