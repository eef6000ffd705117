"""From settings to a protocol, without touching the store, and without importing what is not used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hivewire.backend import Backend
from hivewire.engine.protocol import Engine
from hivewire.errors import SettingsError, Unsupported
from hivewire.factory import ProtocolFactory, connect
from hivewire.protocol import Protocol
from hivewire.settings import Settings

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("PROTOCOL_TYPE", "HIVEWIRE_URL", "HIVEWIRE_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def backend_of(protocol: Protocol) -> Backend:
    assert isinstance(protocol, Engine)
    return protocol.backend


@pytest.mark.parametrize(
    ("target", "name"),
    [(None, "MemoryBackend"), ("memory://x", "MemoryBackend"), ("sqlite:///x.db", "SQLiteBackend"),
     ("redis://h", "RedisBackend"), ("rediss://h:1/2", "RedisBackend"),
     (Settings(protocol="sqlite"), "SQLiteBackend")],
)  # fmt: skip
def test_the_target_chooses_the_backend(target: str | Settings | None, name: str) -> None:
    assert type(backend_of(connect(target))).__name__ == name


def test_connect_touches_nothing(tmp_path: Path) -> None:
    connect("sqlite:///sub/x.db")
    connect(f"sqlite:///{tmp_path}/y.db")
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_a_backend_is_refused_in_one_sentence() -> None:
    with pytest.raises(Unsupported, match=r"no hybrid of Redis and Kafka yet: use redis://HOST or sqlite:///FILE"):
        connect(protocol="hybrid")


def test_the_factory_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOCOL_TYPE", "sqlite")
    factory = ProtocolFactory.from_env()
    factory.validate()
    assert type(backend_of(factory.create_protocol())).__name__ == "SQLiteBackend"
    assert ProtocolFactory(Settings(lease_s=3)).settings.lease_s == 3
    monkeypatch.setenv("PROTOCOL_TYPE", "redis")
    assert type(backend_of(ProtocolFactory.from_env().create_protocol())).__name__ == "RedisBackend"
    monkeypatch.setenv("PROTOCOL_TYPE", "hybrid")
    with pytest.raises(Unsupported):
        ProtocolFactory.from_env().validate()
    monkeypatch.setenv("PROTOCOL_TYPE", "rabbit")
    with pytest.raises(SettingsError, match=r"PROTOCOL_TYPE.*inmemory, sqlite, redis, kafka, hybrid"):
        ProtocolFactory.from_env()


def test_a_missing_client_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("hivewire.backends.redis")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(Unsupported, match=r"pip install 'hivewire\[redis\]'"):
        connect("redis://h")


def test_the_factory_refuses_what_could_not_be_durable() -> None:
    with pytest.raises(SettingsError, match="require_durable"):
        ProtocolFactory(Settings(require_durable=True)).validate()
    ProtocolFactory(Settings(protocol="sqlite", require_durable=True)).validate()


@pytest.mark.parametrize(
    ("target", "wanted", "unwanted"),
    [
        ("memory://", "hivewire.backends.memory", "hivewire.backends.sqlite"),
        ("sqlite:///x.db", "hivewire.backends.sqlite", "hivewire.backends.memory"),
        ("redis://h", "hivewire.backends.redis", "hivewire.backends.sqlite"),
        ("memory://", "hivewire.backends.memory", "hiredis"),
    ],
)
def test_only_the_backend_in_use_is_imported(target: str, wanted: str, unwanted: str) -> None:
    program = (
        "import sys, hivewire.factory as factory\n"
        "assert not any(name.startswith('hivewire.backends.') for name in sys.modules)\n"
        f"factory.connect({target!r})\n"
        "print(*sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, check=True, capture_output=True, text=True
    )
    assert wanted in run.stdout.split()
    assert unwanted not in run.stdout.split()
