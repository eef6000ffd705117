"""What is done now and then: what fell due, what is forgotten, and space given back."""

from __future__ import annotations

from hivewire.backends.sqlite import members, storing
from hivewire.backends.sqlite.catalogue import NOTES_KEPT_S
from hivewire.backends.sqlite.transaction import Transaction

_OLD_NOTES = "DELETE FROM notes WHERE at < ?"
_OLD_KEYS = "DELETE FROM idempotent WHERE until <= ?"
_KEYS_BEFORE = "DELETE FROM idempotent WHERE used_at < ?"
_OLD_VALUES = "DELETE FROM catalogue WHERE expires_at <= ?"
_OLD_SETTLED = "DELETE FROM settled WHERE id <= ? AND at < ?"
_SETTLED_AT = "SELECT id FROM settled WHERE at < ? ORDER BY id DESC LIMIT 1"
_SETTLED_TOTALS = "SELECT queue, sum(number) FROM settled GROUP BY queue HAVING sum(number) > ?"
_SETTLED_BLOCKS = "SELECT id, number FROM settled WHERE queue = ? ORDER BY id DESC"
_FORGET_SETTLED = "DELETE FROM settled WHERE queue = ? AND id < ?"


def advance(transaction: Transaction) -> None:
    """What time brings about."""
    members.advance(transaction)
    while storing.move_due(transaction):
        pass


def tidy(transaction: Transaction, ids: int, seconds: float) -> None:
    db, now = transaction.db, transaction.now
    advance(transaction)
    db.execute(_OLD_NOTES, (now - NOTES_KEPT_S,))
    db.execute(_OLD_KEYS, (now,))
    db.execute(_OLD_VALUES, (now,))
    forget_settled(transaction, ids, now - seconds)


def forget_settled(transaction: Transaction, ids: int, before: float) -> int:
    """Drop the blocks that are too old, or beyond the newest `ids` of their queue."""
    db = transaction.db
    forgotten = 0
    row = db.execute(_SETTLED_AT, (before,)).fetchone()
    if row is not None:
        forgotten += db.execute(_OLD_SETTLED, (row[0], before)).rowcount
    for queue, _ in db.execute(_SETTLED_TOTALS, (ids,)).fetchall():
        kept = 0
        for id_, number in db.execute(_SETTLED_BLOCKS, (queue,)).fetchall():
            kept += number
            if kept >= ids:
                forgotten += db.execute(_FORGET_SETTLED, (queue, id_)).rowcount
                break
    return forgotten


def clean_up(transaction: Transaction, older_than_s: float) -> int:
    """Forget what is older; messages and dead letters are never touched."""
    db, now = transaction.db, transaction.now
    before = now - older_than_s
    forgotten = forget_settled(transaction, 1 << 62, before)
    forgotten += db.execute(_OLD_KEYS, (now,)).rowcount + db.execute(_KEYS_BEFORE, (before,)).rowcount
    forgotten += db.execute(_OLD_VALUES, (now,)).rowcount
    return forgotten + db.execute(_OLD_NOTES, (before,)).rowcount
