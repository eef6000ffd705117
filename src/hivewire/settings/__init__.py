"""Settings: frozen, from code, the environment and `hivewire.toml`; what is unknown or wrong is refused."""

from hivewire.settings.ledger import LedgerSettings, PostgresSettings
from hivewire.settings.reading import load
from hivewire.settings.schema import InMemorySettings, KafkaSettings, RedisSettings, Secret, Settings

__all__ = [
    "InMemorySettings",
    "KafkaSettings",
    "LedgerSettings",
    "PostgresSettings",
    "RedisSettings",
    "Secret",
    "Settings",
    "load",
]
