"""A URL, or the settings, become a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from hivewire.errors import SettingsError, Unsupported
from hivewire.settings import Settings, load
from hivewire.settings.targets import hidden

if TYPE_CHECKING:
    from hivewire.coordination.ledger.contract import Ledger
    from hivewire.coordination.ledger.store import Store

_EXAMPLES = "memory://, sqlite:///file.db or postgresql://user:password@host:5432/database?ssl_mode=verify-full"


def open_ledger(target: str | Settings | None = None, *, migrate: bool | None = None, **settings: Any) -> Ledger:
    """The ledger of a URL, of a `Settings` object, or of the environment and `hivewire.toml` (`LEDGER_TYPE` …).

    Opens nothing: that happens on `async with`, or on the first call. `migrate`: make or upgrade the tables when it
    is opened; left out, tables are made in memory, and in an SQLite file that has none. Raises `SettingsError`, and
    `Unsupported` when the package for PostgreSQL is not installed.
    """
    from hivewire.coordination.ledger.cached import CachedLedger
    from hivewire.coordination.ledger.stored import Retention, StoredLedger

    chosen = ledger_settings(target, **settings)
    ledger = chosen.ledger
    store = store_of(chosen)
    retention = None
    if ledger.auto_purge:
        retention = Retention(every_s=ledger.purge_interval_s, older_than_s=ledger.retain_duration_s)
    makes = migrate is None and ledger.type in ("inmemory", "sqlite")
    stored = StoredLedger(store, retention=retention, migrate=bool(migrate), make=makes)
    if ledger.enable_cache or ledger.type == "hybrid":
        return CachedLedger(stored, ttl_s=ledger.cache_ttl_s)
    return stored


def ledger_settings(target: str | Settings | None = None, **settings: Any) -> Settings:
    """The settings in force. A URL goes before everything else, and says type and place of the ledger."""
    if not isinstance(target, str):
        return load(target, **settings)
    loaded = load(**settings)
    scheme, found, rest = target.partition("://")
    if not found or scheme not in ("memory", "sqlite", "postgres", "postgresql"):
        raise SettingsError(f"{hidden(target)!r} is not the URL of a ledger; accepted: {_EXAMPLES}")
    if scheme == "memory":
        return _with(loaded, "ledger", type="inmemory")
    if scheme == "sqlite":
        if not rest.startswith("/") or rest in ("/", "/:memory:"):
            raise SettingsError(f"{target!r} names no file: write sqlite:///relative.db or sqlite:////absolute.db")
        return _with(loaded, "ledger", type="sqlite", path=rest[1:])
    kept = "hybrid" if loaded.ledger.type == "hybrid" else "postgres"
    return _with(_postgres(loaded, target), "ledger", type=kept)


def _postgres(loaded: Settings, target: str) -> Settings:
    try:
        parts = urlsplit(target)
        given: dict[str, Any] = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        given |= {name: value for name, value in (("host", parts.hostname), ("port", parts.port)) if value}
    except ValueError as error:
        raise SettingsError(f"{hidden(target)!r} cannot be read: {error}") from None
    for name, text in (("user", parts.username), ("password", parts.password), ("db", parts.path.lstrip("/"))):
        if text:
            given[name] = unquote(text)
    if "sslmode" in given:
        given["ssl_mode"] = given.pop("sslmode")
    checked = load(postgres=given).postgres
    names = {name if name in checked.__struct_fields__ else f"{name}_s" for name in given}
    return _with(loaded, "postgres", **{name: getattr(checked, name) for name in names})


def _with(settings: Settings, section: str, **changes: Any) -> Settings:
    changed = msgspec.structs.replace(getattr(settings, section), **changes)
    return msgspec.structs.replace(settings, **{section: changed})


def store_of(settings: Settings) -> Store:
    """The store that the settings name."""
    if settings.ledger.type == "inmemory":
        from hivewire.coordination.ledger.sqlite import MemoryStore

        return MemoryStore()
    if settings.ledger.type == "sqlite":
        from hivewire.coordination.ledger.sqlite import SQLiteStore

        return SQLiteStore(Path(settings.ledger.path))
    try:
        from hivewire.coordination.ledger.postgres import PostgresStore
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise Unsupported("a ledger in PostgreSQL needs asyncpg: pip install 'hivewire[postgres]'") from None
    return PostgresStore(settings.postgres)
