"""What a relay reads and writes, each operation as a script for any store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from hivewire.coordination.ledger.store import Ddl, Many, Query, Script
from hivewire.coordination.outbox.tables import LOCK

_PURGED_AT_ONCE: Final = 1_000


class Waiting(NamedTuple):
    """A message that is not sent yet."""

    number: int
    body: bytes
    lane: int


class OutboxStats(NamedTuple):
    """Counted now. `refused`: messages that can never be sent, with the errors of the latest few."""

    waiting: int
    oldest_age_s: float
    sent: int
    refused: int
    handled: int
    errors: tuple[tuple[str, str], ...]


def waiting_lanes(owner: str) -> Script[list[int]]:
    """Lanes with something to be sent that nobody else has, those with the oldest first."""
    rows = yield Query(
        "SELECT lane FROM (SELECT lane, (SELECT min(number) FROM hivewire_outbox AS o "
        "WHERE o.lane = l.lane AND settled_at IS NULL) AS first FROM hivewire_outbox_lanes AS l "
        "WHERE owner = $1 OR until <= hivewire_begun()) AS found WHERE first IS NOT NULL ORDER BY first",
        [owner],
    )
    return [lane for (lane,) in rows]


def claim(lanes: Mapping[int, int], owner: str, lease_s: float) -> Script[list[Waiting]]:
    """Have those lanes that are still free for `lease_s`; the first that wait in each, as many as are given for it."""
    found: list[Waiting] = []
    for lane, limit in sorted(lanes.items()):  # in one order for all, so that no two wait for each other
        mine = yield Query(
            "UPDATE hivewire_outbox_lanes SET owner = $2, until = hivewire_begun() + $3 "
            "WHERE lane = $1 AND (owner = $2 OR until <= hivewire_begun()) RETURNING lane",
            [lane, owner, lease_s],
        )
        if mine:
            rows = yield Query(
                "SELECT number, body FROM hivewire_outbox WHERE lane = $1 AND settled_at IS NULL "
                "ORDER BY number LIMIT $2",
                [lane, limit],
            )
            found += [Waiting(number, bytes(body), lane) for number, body in rows]
    return found


def settle(owner: str, sent: Iterable[int], refused: Iterable[tuple[int, str]]) -> Script[None]:
    """These are stored by the protocol, or never will be; the lanes are anybody's again."""
    rows = [(number, "") for number in sent] + list(refused)
    if rows:
        yield Many(
            "UPDATE hivewire_outbox SET settled_at = hivewire_begun(), error = $2 "
            "WHERE number = $1 AND settled_at IS NULL",
            rows,
        )
    yield Query("UPDATE hivewire_outbox_lanes SET until = 0 WHERE owner = $1", [owner])


def purge(table: str, column: str, older_than_s: float, condition: str = "1 = 1") -> Script[int]:
    """Forget what is so old, some rows at a time; returns how many."""
    key = "number" if table == "hivewire_outbox" else "consumer, id"
    rows = yield Query(
        f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {column} < hivewire_begun() - $1 "
        f"AND {condition} ORDER BY {column} LIMIT {_PURGED_AT_ONCE}) RETURNING 1",
        [older_than_s],
    )
    return len(rows)


def retry() -> Script[int]:
    """Let what was refused be tried again; returns how many."""
    rows = yield Query(
        "UPDATE hivewire_outbox SET settled_at = NULL, error = '' "
        "WHERE settled_at IS NOT NULL AND error <> '' RETURNING 1"
    )
    return len(rows)


def stats() -> Script[OutboxStats]:
    waiting = yield Query(
        "SELECT count(*), coalesce(hivewire_begun() - min(created_at), 0) FROM hivewire_outbox WHERE settled_at IS NULL"
    )
    settled = yield Query(
        "SELECT coalesce(sum(CASE WHEN error = '' THEN 1 ELSE 0 END), 0), "
        "coalesce(sum(CASE WHEN error = '' THEN 0 ELSE 1 END), 0) FROM hivewire_outbox WHERE settled_at IS NOT NULL"
    )
    handled = yield Query("SELECT count(*) FROM hivewire_inbox")
    errors = yield Query(
        "SELECT id, error FROM hivewire_outbox WHERE settled_at IS NOT NULL AND error <> '' "
        "ORDER BY number DESC LIMIT 5"
    )
    return OutboxStats(
        waiting=waiting[0][0],
        oldest_age_s=max(0.0, float(waiting[0][1])),
        sent=int(settled[0][0]),
        refused=int(settled[0][1]),
        handled=handled[0][0],
        errors=tuple((name, error) for name, error in errors),
    )


def missing(names: Sequence[str]) -> Script[list[str]]:
    """Those tables that are not there."""
    places = ", ".join(f"${n}" for n in range(1, len(names) + 1))
    rows = yield Query(f"SELECT name FROM hivewire_tables() WHERE name IN ({places})", list(names))
    return sorted(set(names) - {name for (name,) in rows})


def create(ddl: str) -> Script[None]:
    """Make the tables that are not there; of several that try, one after another."""
    yield Query("SELECT hivewire_lock($1)", [LOCK])
    yield Ddl(ddl)
