"""The file: its tables, how it is opened, and the clocks that its rows are written in.

Records are stored in packs: what one transaction appends to one lane is one row. So storing, taking and
settling a run of messages costs a few rows, not one each. `lanes.head` is the first record of the lane
that is not settled, `lanes.rank` its priority with the sign turned; packs wholly below it are deleted.
A record settled out of turn is noted in `holes`.

A lone record that begins a lane needs no pack: it is in `lanes.data`, and counts as long as the lane's head
is its place (`IS_LONE`). The ids settled last are in `queues.recent`, until they are a block of `settled`.

A commit costs what it dirties, one page of each table or index. So lanes have no index of their owners:
when a member dies, all lanes are looked through once.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from urllib.parse import unquote

from hivewire.errors import BackendError, SettingsError

RANK = (
    "coalesce((SELECT -p.priority FROM packs p WHERE p.lane = lanes.id AND p.first <= {}"
    " ORDER BY p.first DESC LIMIT 1), rank)"
)
"""SQL: the rank of a lane with that head; a lone record that stays at the head keeps its own."""

APPLICATION_ID = 0x48574952  # "HWIR"
VERSION = 2

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux only

_CHECKPOINT_PAGES = 1_000
_MOST_WAL_BYTES = 32 * 1024 * 1024

READY, OWNED, BLOCKED = 1, 2, 3

LANE_BITS = 40
"""The id of a lane is that of its queue, shifted by so many bits, plus the place of its first record."""

IS_LONE = f"(l.data NOT NULL AND l.head = l.id & {(1 << LANE_BITS) - 1})"
"""SQL: the first record of the lane `l` is in its own row."""

_TABLES = """
CREATE TABLE state(one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, beat INTEGER NOT NULL);
INSERT INTO state VALUES (1, 0, 0);
CREATE TABLE queues(
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, mode TEXT, shards INTEGER NOT NULL,
  cap INTEGER NOT NULL, seq INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0,
  in_flight INTEGER NOT NULL DEFAULT 0, scheduled INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
  settled INTEGER NOT NULL DEFAULT 0, recent BLOB NOT NULL DEFAULT x'', owner INTEGER, made_at REAL NOT NULL);
CREATE INDEX queues_owned ON queues(owner) WHERE owner IS NOT NULL;
CREATE TABLE lanes(
  queue INTEGER NOT NULL, key TEXT NOT NULL, id INTEGER NOT NULL, state INTEGER NOT NULL,
  rank INTEGER NOT NULL, head INTEGER NOT NULL, owner INTEGER, taken INTEGER NOT NULL DEFAULT 0,
  taken_to INTEGER NOT NULL DEFAULT 0, due_at REAL NOT NULL DEFAULT 0,
  counted INTEGER NOT NULL DEFAULT 0, starts INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0, died INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0,
  suspect_from INTEGER NOT NULL DEFAULT 0, suspect_to INTEGER NOT NULL DEFAULT 0,
  holes INTEGER NOT NULL DEFAULT 0, stored_at REAL NOT NULL DEFAULT 0, data BLOB,
  PRIMARY KEY(queue, key)) WITHOUT ROWID;
CREATE INDEX lanes_ready ON lanes(queue, rank, head) WHERE state = 1;
CREATE INDEX lanes_due ON lanes(due_at, queue) WHERE state = 3;
CREATE TABLE packs(
  lane INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, stored_at REAL NOT NULL,
  expires_at REAL, priority INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(lane, first)) WITHOUT ROWID;
CREATE INDEX packs_expiring ON packs(expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE holes(lane INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(lane, seq)) WITHOUT ROWID;
CREATE TABLE scheduled(
  id INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, due_at REAL NOT NULL, stored_at REAL NOT NULL,
  number INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX scheduled_due ON scheduled(due_at, id);
CREATE INDEX scheduled_queue ON scheduled(queue);
CREATE TABLE members(
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, pid INTEGER NOT NULL, boot TEXT NOT NULL,
  lease_until REAL NOT NULL, lease_s REAL NOT NULL);
CREATE TABLE settled(
  queue INTEGER NOT NULL, block INTEGER NOT NULL, at REAL NOT NULL, number INTEGER NOT NULL, ids BLOB NOT NULL,
  PRIMARY KEY(queue, block)) WITHOUT ROWID;
CREATE TABLE idempotent(
  queue INTEGER NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL, used_at REAL NOT NULL, until REAL NOT NULL,
  PRIMARY KEY(queue, key)) WITHOUT ROWID;
CREATE INDEX idempotent_until ON idempotent(until);
CREATE TABLE dead(
  id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, record TEXT NOT NULL, data BLOB NOT NULL,
  letter BLOB NOT NULL, dead_at REAL NOT NULL);
CREATE INDEX dead_queue ON dead(queue, id);
CREATE INDEX dead_record ON dead(record);
CREATE TABLE catalogue(
  key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, expires_at REAL) WITHOUT ROWID;
CREATE INDEX catalogue_expiring ON catalogue(expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE notes(
  id INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, body BLOB NOT NULL, at REAL NOT NULL);
CREATE INDEX notes_at ON notes(at);
"""


def path_of(url: str | None) -> Path:
    """The file that a URL names: three slashes for a relative path, four for an absolute one.

    >>> path_of("sqlite:///team.db").name, str(path_of("sqlite:////var/team.db"))
    ('team.db', '/var/team.db')
    """
    rest = unquote((url or "").removeprefix("sqlite:").removeprefix("//").removeprefix("/"))
    if rest == ":memory:":
        raise SettingsError("open sqlite:///:memory:: this backend needs a file; use memory:// for queues in memory")
    return Path(rest or "hivewire.db").absolute()


lease_clock: Callable[[], float] = time.time if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)
"""Seconds that nobody can set, that go on in suspend and are the same in all processes of the host."""


@cache
def boot_id() -> str:
    """Tells one boot of the host from another, because `lease_clock` starts anew with each."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode that never waits by itself."""
    if not path.parent.is_dir():
        raise BackendError(f"open {path}: its directory does not exist; make it or correct the path")
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("PRAGMA cache_size = -16000")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_MOST_WAL_BYTES}")
    except BaseException:
        db.close()
        raise
    return db


def check(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has our tables already, as of one moment: another process may be making them."""
    db.execute("BEGIN")
    try:
        return is_ours(db, path)
    finally:
        db.execute("ROLLBACK")


def is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has our tables already. Raises `BackendError` when they are somebody else's."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID and version == VERSION:
        return True
    if application == APPLICATION_ID:
        raise BackendError(
            f"open {path}: it was written by another version of Hivewire (format {version}, this one reads {VERSION});"
            " use that version, or another file"
        )
    if application or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise BackendError(f"open {path}: it is the database of another program; choose another file")
    return False


def create(db: sqlite3.Connection) -> None:
    """Make the tables; to be called inside a transaction."""
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")
