"""The ledger's settings, by the names of the reference."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from hivewire.settings.about import About, Secret

LedgerType = Literal["inmemory", "sqlite", "postgres", "hybrid"]


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Names of `LedgerConfig`. `hybrid` is PostgreSQL behind a cache, as `enable_cache` makes it, too."""

    type: Annotated[LedgerType, About("where tasks and runs are kept", env="LEDGER_TYPE")] = "inmemory"
    path: Annotated[str, About("the file of the type `sqlite`")] = "hivewire-ledger.db"
    enable_cache: Annotated[
        bool, About("keep tasks in memory; each read still asks for their versions", env="LEDGER_ENABLE_CACHE")
    ] = False
    cache_ttl_s: Annotated[
        float, About("how long an unused task stays in the cache", env="LEDGER_CACHE_TTL", least=0.001)
    ] = 300.0
    auto_purge: Annotated[
        bool, About("delete by itself what was finished `retain_duration_s` ago", env="LEDGER_AUTO_PURGE")
    ] = False
    purge_interval_s: Annotated[float, About("time between purges", env="LEDGER_PURGE_INTERVAL", least=0.1)] = 3600.0
    retain_duration_s: Annotated[
        float, About("how long finished tasks and progress are kept", env="LEDGER_RETAIN_DURATION", least=0)
    ] = 604_800.0


class PostgresSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Names of `PostgresLedgerConfig`."""

    host: Annotated[str, About("the server's name, or the folder of its socket", env="POSTGRES_HOST")] = "localhost"
    port: Annotated[int, About("its port", env="POSTGRES_PORT", least=1, most=65535)] = 5432
    db: Annotated[str, About("database", env="POSTGRES_DB")] = "minion"
    user: Annotated[str, About("user", env="POSTGRES_USER")] = "minion"
    password: Annotated[Secret, About("password", env="POSTGRES_PASSWORD")] = Secret("minion")
    ssl_mode: Annotated[
        Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
        About("as PostgreSQL's own clients understand it", env="POSTGRES_SSL_MODE"),
    ] = "disable"
    ssl_root_cert: Annotated[str | None, About("file with the certificates that the server's must come from")] = None
    ssl_cert: Annotated[str | None, About("file with the client's own certificate")] = None
    ssl_key: Annotated[str | None, About("file with the client's key")] = None
    max_conns: Annotated[int, About("most connections", env="POSTGRES_MAX_CONNS", least=1)] = 25
    idle_conns: Annotated[int, About("connections kept open", env="POSTGRES_IDLE_CONNS", least=0)] = 5
    conn_max_lifetime_s: Annotated[float, About("age at which a connection is closed", least=0.001)] = 300.0
    conn_max_idle_time_s: Annotated[float, About("time unused after which it is closed", least=0.001)] = 60.0
    batch_size: Annotated[int, About("tasks that one statement creates", least=1, most=1000)] = 100
    prepared_stmts: Annotated[
        bool, About("prepare statements; false behind a pooler that hands out a session anew for each transaction")
    ] = True
    statement_timeout_s: Annotated[
        float, About("time for one statement", env="POSTGRES_STATEMENT_TIMEOUT", least=0.001, most=86_400)
    ] = 30.0
    schema: Annotated[str, About("schema of the tables; `hivewire ledger upgrade` makes it")] = "public"
