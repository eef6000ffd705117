"""Small values with versions, and notes to whoever listens."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from hivewire.backend import Entry
from hivewire.backends.sqlite.transaction import Transaction

EPOCH_PREFIXES = ("agent/", "group/")
NOTES_KEPT_S = 60.0

_GET = "SELECT value, version FROM catalogue WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)"
_PUT = "INSERT OR REPLACE INTO catalogue(key, value, version, expires_at) VALUES (?, ?, ?, ?)"
_SCAN = (
    "SELECT key, value, version FROM catalogue WHERE key >= ? AND (? = '' OR key < ?)"
    " AND (expires_at IS NULL OR expires_at > ?) ORDER BY key"
)
_NEXT_EPOCH = "UPDATE state SET epoch = epoch + 1 RETURNING epoch"
_PUBLISH = "INSERT INTO notes(channel, body, at) VALUES (?, ?, ?)"
_OLD_NOTES = "DELETE FROM notes WHERE at < ?"
_NEWEST_NOTE = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'notes'"
_NOTES = "SELECT id, channel, body FROM notes WHERE id > ? ORDER BY id LIMIT 1000"


def get(db: sqlite3.Connection, key: str, now: float) -> Entry:
    row = db.execute(_GET, (key, now)).fetchone()
    return Entry(b"", 0) if row is None else Entry(*row)


def put(
    transaction: Transaction, key: str, value: bytes, version: int, ttl_s: float | None
) -> tuple[Entry | None, int | None]:
    """The new entry, or None if the version has moved on; and the epoch if it has changed."""
    present = get(transaction.db, key, transaction.now)
    if present.version != version:
        return None, None
    entry = Entry(value, version + 1)
    expires_at = None if ttl_s is None else transaction.now + ttl_s
    transaction.db.execute(_PUT, (key, value, entry.version, expires_at))
    if not key.startswith(EPOCH_PREFIXES):
        return entry, None
    transaction.epoch = transaction.db.execute(_NEXT_EPOCH).fetchall()[0][0]
    return entry, transaction.epoch


def scan(db: sqlite3.Connection, prefix: str, now: float) -> Mapping[str, Entry]:
    rows = db.execute(_SCAN, (prefix, prefix, prefix + "\U0010ffff", now))
    return {key: Entry(value, version) for key, value, version in rows}


def publish(transaction: Transaction, channel: str, body: bytes) -> None:
    transaction.db.execute(_PUBLISH, (channel, body, transaction.now))
    transaction.db.execute(_OLD_NOTES, (transaction.now - NOTES_KEPT_S,))  # perhaps nobody listens, and nobody tidies


def newest_note(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEWEST_NOTE).fetchone()[0])


def notes_after(db: sqlite3.Connection, cursor: int) -> list[tuple[int, str, bytes]]:
    return db.execute(_NOTES, (cursor,)).fetchall()
