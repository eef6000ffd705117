"""The common SQL as PostgreSQL takes it, and asyncpg's errors as ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

import asyncpg

from hivewire.coordination.ledger.pool import Answer
from hivewire.errors import BackendError, ConnectionLost, LedgerError, TimedOut

_TABLES: Final = "(SELECT tablename::text AS name FROM pg_tables WHERE schemaname = current_schema()) AS known"
_NOW: Final = "CAST(extract(epoch FROM {}()) AS double precision)"

_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting; a query that is cancelled comes before
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby: the primary has moved
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    EOFError,
)
_AGAIN: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)
"""Nothing was changed, and the same script will most likely work."""


class Again(ConnectionLost):
    """To be tried again at once."""


@lru_cache(maxsize=1_000)
def native(sql: str) -> str:
    """A statement of the common SQL as PostgreSQL takes it."""
    for name, own in (
        ("hivewire_now()", _NOW.format("clock_timestamp")),
        ("hivewire_begun()", _NOW.format("statement_timestamp")),
        ("hivewire_tables()", _TABLES),
        ("hivewire_lock", "pg_advisory_xact_lock"),
    ):
        sql = sql.replace(name, own)
    return sql


@contextmanager
def translated(doing: str, place: str) -> Generator[None]:
    """asyncpg's errors become ours, and nothing else happens."""
    try:
        yield
    except Answer as answer:
        raise answer.error from None
    except asyncpg.QueryCanceledError as error:
        raise TimedOut(f"{doing} in {place}: {error}; statement_timeout is too short, or a lock is held") from error
    except _AGAIN as error:
        raise Again(f"{doing} in {place}: {error}") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise BackendError(f"{doing} in {place}: {error}; check POSTGRES_USER, _PASSWORD and _DB") from error
    except _LOST as error:
        raise ConnectionLost(f"{doing} in {place}: {str(error) or type(error).__name__}") from error
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise LedgerError(f"the ledger refused: {error}") from error
    except asyncpg.PostgresError as error:
        raise BackendError(f"{doing} in {place}: {error}") from error


@lru_cache(maxsize=100)
def of_one(sql: str, columns: tuple[tuple[str, str], ...]) -> str:
    """A statement on one given row, whose values are the arguments."""
    values = ", ".join(f"CAST(${number} AS {kind})" for number, (_, kind) in enumerate(columns, 1))
    return native(sql).replace("hivewire_given()", f"(VALUES ({values})) AS given({_names(columns)})")


@lru_cache(maxsize=1_000)
def of_many(sql: str, columns: tuple[tuple[str, str], ...], is_given: tuple[bool, ...]) -> str:
    """A statement on many given rows; the columns that are given are the arguments, the others are NULL."""
    arrays, names, values = [], [], []
    for (name, kind), is_one in zip(columns, is_given, strict=True):
        if is_one:
            names.append(name)
            arrays.append(f"CAST(${len(names)} AS {kind}[])")
        values.append(name if is_one else f"CAST(NULL AS {kind}) AS {name}")
    rows = f"SELECT {', '.join(values)} FROM unnest({', '.join(arrays)}) AS known({', '.join(names)})"
    return native(sql).replace("hivewire_given()", f"({rows}) AS given")


def _names(columns: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(name for name, _ in columns)
