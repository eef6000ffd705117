"""A URL becomes a `Protocol`. The only importer of backends, and only of the one that is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.errors import SettingsError, Unsupported
from hivewire.settings import Settings, load

if TYPE_CHECKING:
    from hivewire.backend import Backend
    from hivewire.engine.middleware import Middleware
    from hivewire.protocol import Protocol

_NOT_YET: Final = {
    "hybrid": "this version has no hybrid of Redis and Kafka yet: use redis://HOST or sqlite:///FILE",
}


def connect(
    target: str | Settings | None = None,
    *,
    outgoing: Sequence[Middleware] = (),
    incoming: Sequence[Middleware] = (),
    **settings: Any,
) -> Protocol:
    """The protocol of a URL, of a `Settings` object, or of the environment and `hivewire.toml`.

    Opens nothing: that happens on `async with`, or on the first call. `outgoing` and `incoming` are
    middleware. Raises `SettingsError` for a setting that is unknown or not accepted, and `Unsupported`
    for a store that this version has no backend for.
    """
    return _protocol(load(target, **settings), outgoing, incoming)


class ProtocolFactory:
    """The reference's way to make a protocol; the same as `connect`."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = load(settings) if settings is not None else load()

    @classmethod
    def from_env(cls) -> ProtocolFactory:
        """From the environment and `hivewire.toml`. Bad values are refused, not ignored."""
        return cls(load())

    def validate(self) -> None:
        """Raise `SettingsError` or `Unsupported` when `create_protocol` could not work."""
        _check(self.settings)

    def create_protocol(self) -> Protocol:
        return _protocol(self.settings, (), ())


def _check(settings: Settings) -> None:
    if settings.protocol in _NOT_YET:
        raise Unsupported(_NOT_YET[settings.protocol])
    if settings.protocol == "inmemory" and settings.require_durable:
        source = settings.origins.get("require_durable", "the Settings object")
        raise SettingsError(
            f"require_durable in {source} is true, but memory:// loses all with its process: use sqlite:///FILE"
        )


def _protocol(settings: Settings, outgoing: Sequence[Middleware], incoming: Sequence[Middleware]) -> Protocol:
    if settings.protocol in _NOT_YET:
        raise Unsupported(_NOT_YET[settings.protocol])
    from hivewire.engine.protocol import Engine

    return Engine(settings, _backend(settings), outgoing=outgoing, incoming=incoming)


def _backend(settings: Settings) -> Backend:
    if settings.protocol == "sqlite":
        from hivewire.backends.sqlite import SQLiteBackend

        return SQLiteBackend(settings)
    if settings.protocol == "redis":
        return _redis(settings)
    if settings.protocol == "kafka":
        return _kafka(settings)
    from hivewire.backends.memory import MemoryBackend

    return MemoryBackend(settings)


def _redis(settings: Settings) -> Backend:
    try:
        from hivewire.backends.redis import RedisBackend
    except ModuleNotFoundError as error:
        if error.name != "hiredis":
            raise
        raise Unsupported("redis:// needs hiredis: pip install 'hivewire[redis]'") from None
    return RedisBackend(settings)


def _kafka(settings: Settings) -> Backend:
    try:
        from hivewire.backends.kafka import KafkaBackend
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("confluent_kafka"):
            raise
        raise Unsupported("kafka:// needs confluent-kafka: pip install 'hivewire[kafka]'") from None
    return KafkaBackend(settings)
