"""What keeps a ledger's rows. A store runs scripts and knows nothing of tasks.

A script is a generator: it yields statements and is sent their rows, so that each operation is written once, for
stores that block (SQLite, in a thread) and stores that do not (PostgreSQL). Statements are in the SQL that both
speak, with `$1` for the first argument; `hivewire_now()` and `hivewire_begun()` are the store's clock (now, and when
the statement began), `FOR UPDATE` and `FOR SHARE` are left out where there is one writer.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")

Dialect = Literal["sqlite", "postgres"]
Row: TypeAlias = Sequence[Any]


class Query(NamedTuple):
    """One statement and its arguments."""

    sql: str
    arguments: Sequence[Any] = ()


class Given(NamedTuple):
    """One statement on the row `hivewire_given()`, named `given`; several of the same text may be executed as one
    on many rows. Those that it returns end with the `mark` of the given one. `locks`: the row that it changes, so
    that all lock in the same order, and no two of one row are given at once."""

    sql: str
    columns: tuple[tuple[str, str], ...]
    """Name and type of each value."""
    values: Sequence[Any]
    mark: str
    locks: str


class Many(NamedTuple):
    """One statement for many rows of arguments; no rows come back."""

    sql: str
    rows: Sequence[Sequence[Any]]


class Ddl(NamedTuple):
    """Statements of the store's own dialect, with semicolons."""

    text: str


Statement: TypeAlias = Query | Given | Many | Ddl
Script: TypeAlias = Generator[Statement, Sequence[Row], T]


class Store(ABC):
    """Runs scripts. Raises `ConnectionLost` while it is away."""

    kind: str
    dialect: Dialect
    durability: str
    schema: str | None = None
    """Where the tables are, if the store has more than one place for them."""
    rows_at_once: int = 100
    """How many rows one statement inserts."""

    @abstractmethod
    async def open(self) -> None:
        """Idempotent."""

    @abstractmethod
    async def read(self, make: Callable[[], Script[T]]) -> T:
        """Run a script that changes nothing."""

    @abstractmethod
    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        """Run a script as one transaction; nothing is kept when it raises.

        `single`: at most one of its statements changes anything, so that no transaction is needed around them.
        A store that was lost half-way may run a new script from `make`, though the first one was committed: the
        script must find that out.
        """

    @abstractmethod
    async def storage_size_bytes(self) -> int:
        """What the ledger's tables take."""

    @abstractmethod
    async def close(self) -> None:
        """Idempotent."""


class Positional(NamedTuple):
    """A statement with a `?` for each argument, and how to bring its arguments into the order of those."""

    text: str
    arranged: Callable[[Sequence[Any]], Sequence[Any]]


@lru_cache(maxsize=1_000)
def positional(sql: str) -> Positional:
    """For SQLite, to which `$1` would be a name."""
    numbers = [int(number) - 1 for number in re.findall(r"\$(\d+)", sql)]
    text = re.sub(r"\$\d+", "?", sql)
    if numbers == list(range(len(numbers))):
        return Positional(text, _as_they_are)
    return Positional(text, lambda values: [values[number] for number in numbers])


def _as_they_are(values: Sequence[Any]) -> Sequence[Any]:
    return values
