"""What a URL, the environment and the settings make of a ledger."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from hivewire.coordination.ledger.cached import CachedLedger
from hivewire.coordination.ledger.opening import ledger_settings, open_ledger, store_of
from hivewire.coordination.ledger.postgres import PostgresStore
from hivewire.coordination.ledger.sqlite import MemoryStore, SQLiteStore
from hivewire.coordination.ledger.store import Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.errors import BackendError, SettingsError


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in os.environ:
        if variable.startswith(("HIVEWIRE_", "LEDGER_", "POSTGRES_")):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_the_reference_s() -> None:
    settings = ledger_settings()
    ledger, postgres = settings.ledger, settings.postgres
    assert (ledger.type, ledger.enable_cache, ledger.cache_ttl_s) == ("inmemory", False, 300)
    assert (ledger.auto_purge, ledger.purge_interval_s, ledger.retain_duration_s) == (False, 3600, 7 * 86400)
    assert (postgres.host, postgres.port, postgres.db, postgres.user) == ("localhost", 5432, "minion", "minion")
    assert (postgres.password.reveal(), postgres.ssl_mode) == ("minion", "disable")
    assert (postgres.max_conns, postgres.idle_conns) == (25, 5)
    assert (postgres.conn_max_lifetime_s, postgres.conn_max_idle_time_s) == (300, 60)
    assert (postgres.batch_size, postgres.prepared_stmts, postgres.statement_timeout_s) == (100, True, 30)
    assert postgres.schema == "public"


def test_the_environment_says_it_by_the_reference_s_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LEDGER_TYPE": "hybrid",
        "LEDGER_CACHE_TTL": "2m",
        "LEDGER_AUTO_PURGE": "true",
        "LEDGER_PURGE_INTERVAL": "30m",
        "LEDGER_RETAIN_DURATION": "24h",
        "POSTGRES_HOST": "db",
        "POSTGRES_PORT": "6543",
        "POSTGRES_DB": "work",
        "POSTGRES_USER": "me",
        "POSTGRES_PASSWORD": "secret",
        "POSTGRES_SSL_MODE": "verify-full",
        "POSTGRES_MAX_CONNS": "9",
        "POSTGRES_IDLE_CONNS": "3",
        "POSTGRES_STATEMENT_TIMEOUT": "5s",
    }.items():
        monkeypatch.setenv(name, value)
    settings = ledger_settings()
    ledger, postgres = settings.ledger, settings.postgres
    assert (ledger.type, ledger.cache_ttl_s, ledger.auto_purge) == ("hybrid", 120, True)
    assert (ledger.purge_interval_s, ledger.retain_duration_s) == (1800, 86400)
    assert (postgres.host, postgres.port, postgres.db, postgres.user) == ("db", 6543, "work", "me")
    assert (postgres.password.reveal(), postgres.ssl_mode) == ("secret", "verify-full")
    assert (postgres.max_conns, postgres.idle_conns, postgres.statement_timeout_s) == (9, 3, 5)
    made = open_ledger(settings)
    assert isinstance(made, CachedLedger)
    assert isinstance(made.inner.store, PostgresStore)


def test_a_url_says_type_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEDGER_TYPE", "sqlite")
    monkeypatch.setenv("POSTGRES_PASSWORD", "from the environment")
    url = "postgresql://an%40n:p%2Fw@h:99/d?ssl_mode=require&schema=mine&statement_timeout=2s"
    postgres = ledger_settings(url).postgres
    assert (postgres.user, postgres.password.reveal(), postgres.host, postgres.port) == ("an@n", "p/w", "h", 99)
    assert (postgres.db, postgres.ssl_mode, postgres.schema, postgres.statement_timeout_s) == (
        "d",
        "require",
        "mine",
        2,
    )
    assert ledger_settings("postgres://h/d?sslmode=prefer").postgres.password.reveal() == "from the environment"
    assert ledger_settings("sqlite:///a/b.db").ledger.path == "a/b.db"
    assert ledger_settings("sqlite:////a/b.db").ledger.path == "/a/b.db"
    assert isinstance(store_of(ledger_settings("memory://")), MemoryStore)
    assert isinstance(store_of(ledger_settings("sqlite:///x.db")), SQLiteStore)
    assert isinstance(open_ledger("memory://"), StoredLedger)
    assert isinstance(open_ledger("memory://", ledger={"enable_cache": True}), CachedLedger)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://h/d",
        "x.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "postgresql://h:99999/d",
        "postgresql://h/d?nonsense=1",
        "postgresql://h/d?ssl_mode=perhaps",
        "postgresql://h/d?schema=Robert'); DROP",
        "postgresql://h/d?schema",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        ledger_settings(url)


def test_a_refusal_shows_no_password() -> None:
    with pytest.raises(SettingsError) as refused:
        ledger_settings("mysql://me:hunter2@h/d")
    assert "hunter2" not in str(refused.value)


def test_a_certificate_that_is_not_there_is_named() -> None:
    from hivewire.coordination.ledger.postgres import tls_of

    settings = ledger_settings("postgresql://h/d?ssl_mode=verify-full", postgres={"ssl_root_cert": "nowhere.pem"})
    with pytest.raises(BackendError, match="certificate or key cannot be read"):
        tls_of(settings.postgres)


def test_who_opens_a_file_while_another_makes_it_does_not_take_it_for_a_foreign_one(tmp_path: Path) -> None:
    file, store = tmp_path / "ledger.db", SQLiteStore(tmp_path / "ledger.db")
    begun: list[str] = []

    def another(statement: str) -> None:
        begun.append(statement)
        if len(begun) == 2:  # the first has looked, and found an empty file
            with closing(sqlite3.connect(file, isolation_level=None)) as other:
                store.prepare(other)
                other.execute("CREATE TABLE tasks (id TEXT)")

    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.set_trace_callback(another)
        store.prepare(db)


class _Killed(Exception):
    """In place of the end of a process."""


@pytest.mark.parametrize("writes", range(4))
async def test_a_new_file_is_opened_by_many_at_once_and_after_the_death_of_who_made_it(
    writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another process has done of it by now: nothing but the file, some of the tables, all of them."""
    left, write = writes, SQLiteStore.write

    async def dying(store: SQLiteStore, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        nonlocal left
        if not left:
            raise _Killed
        left -= 1
        return await write(store, make, single=single)

    first = open_ledger("sqlite:///ledger.db")
    with monkeypatch.context() as patched, suppress(_Killed):
        patched.setattr(SQLiteStore, "write", dying)
        await first.open()
    async with open_ledger("sqlite:///ledger.db") as ledger:
        assert (await ledger.stats()).total == 0
    await first.close()


def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("CREATE TABLE theirs (id TEXT)")
        before = file.read_bytes()
        with pytest.raises(BackendError, match=r"other\.db: it is a database of another program; name another file"):
            SQLiteStore(file).prepare(db)
        assert not db.in_transaction
    assert file.read_bytes() == before
