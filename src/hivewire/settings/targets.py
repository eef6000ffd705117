"""What a URL says: the protocol, where it is, and settings in its query."""

from __future__ import annotations

import re
from typing import Any, Final

from hivewire.errors import SettingsError

SCHEMES: Final = {
    "memory": "inmemory",
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "kafka": "kafka",
}
_EXAMPLES: Final = "memory://, sqlite:///file.db, redis://host:6379/0, rediss://…, kafka://host:9092,host2:9092"
_plain_name = re.compile(r"[A-Za-z0-9._-]*").fullmatch


class Target:
    """A URL, taken apart: `url` without query and password, `values` by dotted name, `query` as written."""

    __slots__ = ("protocol", "query", "url", "values")

    def __init__(self, text: str) -> None:
        scheme, found, rest = text.partition("://")
        if not found or scheme.lower() not in SCHEMES:
            raise SettingsError(f"{hidden(text)!r} is not the URL of a store; accepted: {_EXAMPLES}")
        if "#" in rest and scheme != "sqlite":
            raise SettingsError(f"{hidden(text)!r} has a '#'; write %23")
        self.protocol = SCHEMES[scheme.lower()]
        place, _, query = rest.partition("?")
        self.query = _query(text, query)
        self.values: dict[str, Any] = {}
        if self.protocol == "inmemory":
            self._memory(text, place)
        elif self.protocol == "sqlite":
            self._sqlite(text, place)
        elif self.protocol == "redis":
            self._redis(text, scheme.lower(), place)
        else:
            self._kafka(text, place)

    def _memory(self, text: str, place: str) -> None:
        if not _plain_name(place):
            raise SettingsError(f"{hidden(text)!r}: the name after memory:// has only the characters A-Z a-z 0-9 . _ -")
        self.url = f"memory://{place}"

    def _sqlite(self, text: str, place: str) -> None:
        if place and (not place.startswith("/") or place == "/" or place.endswith("/")):
            raise SettingsError(
                f"{hidden(text)!r} names no file: write sqlite:///relative.db, sqlite:////absolute.db or sqlite://"
            )
        if place.startswith("/:memory:"):
            raise SettingsError("SQLite in memory can not be shared: use memory://")
        if "\0" in place:
            raise SettingsError("a file's name can not hold NUL")
        self.url = f"sqlite://{place}"

    def _redis(self, text: str, scheme: str, place: str) -> None:
        from urllib.parse import unquote

        login, _, server = place.rpartition("@")
        host, slash, db = server.partition("/")
        if slash and db and not (db.isascii() and db.isdigit() and len(db) < 9):
            raise SettingsError(f"{hidden(text)!r}: the database is a number, as in redis://host:6379/0")
        user, _, password = login.partition(":")
        if user:
            self.values["redis.username"] = unquote(user)
        if password:
            self.values["redis.password"] = unquote(password)
        if slash and db:
            self.values["redis.db"] = int(db)
        if scheme == "rediss":
            self.values["redis.tls"] = True
        addr = self.values["redis.addr"] = checked_addresses(host or "localhost", 6379)
        self.url = f"{scheme}://{addr}" + (f"/{db}" if db else "")

    def _kafka(self, text: str, place: str) -> None:
        if "/" in place.rstrip("/") or "@" in place:
            raise SettingsError(f"{hidden(text)!r}: after kafka:// come brokers alone, as in kafka://h1:9092,h2:9092")
        brokers = [checked_address(part or "localhost", 9092) for part in place.rstrip("/").split(",")]
        self.values["kafka.brokers"] = tuple(brokers)
        self.url = f"kafka://{','.join(brokers)}"


def checked_address(text: str, port: int) -> str:
    """`host:port`; IPv6 addresses stand in brackets."""
    matched = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    number = int(matched[2] or port) if matched else 0
    if matched is None or not 0 < number < 65536:
        raise SettingsError(f"{text!r} is not the address of a server; write host:{port}, the port from 1 to 65535")
    return f"{matched[1]}:{number}"


def checked_addresses(text: str, port: int) -> str:
    """One or several, with commas."""
    return ",".join(checked_address(part.strip(), port) for part in text.split(","))


def hidden(text: str) -> str:
    """The URL without what stands before an `@`, and without its query."""
    scheme, found, rest = text.partition("://")
    _, at, rest = rest.rpartition("@")  # first: a password may have a `?` in it, against the rules
    rest, mark, _ = rest.partition("?")
    shown = f"***@{rest}" if at else rest
    return f"{scheme}{found}{shown}{'?…' if mark else ''}"[:200] if found else text[:80]


def _query(text: str, query: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=100, errors="strict")
    except ValueError as error:
        raise SettingsError(f"the query of {hidden(text)!r} can not be read: {error}") from None
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(f"{min(twice)!r} stands twice in the query of {hidden(text)!r}")
    return dict(pairs)
