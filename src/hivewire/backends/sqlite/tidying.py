"""What is done now and then: what fell due, what is forgotten, and space given back."""

from __future__ import annotations

from hivewire.backends.sqlite import members, storing
from hivewire.backends.sqlite.catalogue import NOTES_KEPT_S
from hivewire.backends.sqlite.transaction import Transaction, blocks_in

_OLD_NOTES = "DELETE FROM notes WHERE at < ?"
_OLD_KEYS = "DELETE FROM idempotent WHERE until <= ?"
_KEYS_BEFORE = "DELETE FROM idempotent WHERE used_at < ?"
_OLD_VALUES = "DELETE FROM catalogue WHERE expires_at <= ?"
_LONE_MAILBOXES = "SELECT id FROM queues WHERE owner IS NULL AND name LIKE '~reply/%' AND made_at < ?"
_MAILBOX_WAITS_S = 3_600.0
_SETTLED_QUEUES = "SELECT id FROM queues WHERE settled > 0"
_RECENTLY_SETTLED = "SELECT id FROM queues WHERE recent <> x''"
_SETTLED_BLOCKS = "SELECT block, at, number FROM settled WHERE queue = ? ORDER BY block DESC"
_FORGET_SETTLED = "DELETE FROM settled WHERE queue = ? AND block <= ?"


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
    for (queue,) in db.execute(_LONE_MAILBOXES, (now - _MAILBOX_WAITS_S,)).fetchall():
        members.drop_queue(transaction, queue)  # its owner died before it read from it
    forget_settled(transaction, ids, now - seconds)


def forget_settled(transaction: Transaction, ids: int, before: float) -> int:
    """Drop the blocks that are too old, or beyond the newest `ids` of their queue."""
    db = transaction.db
    forgotten = 0
    for (queue_id,) in db.execute(_RECENTLY_SETTLED).fetchall():
        queue = transaction.queue(queue_id)
        if queue is not None and blocks_in(queue.recent)[-1][1] < before:
            queue.recent, queue.dirty = b"", True
            forgotten += 1
    for (queue_id,) in db.execute(_SETTLED_QUEUES).fetchall():
        kept = 0
        for block, at, number in db.execute(_SETTLED_BLOCKS, (queue_id,)).fetchall():
            if at < before or kept >= ids:
                forgotten += db.execute(_FORGET_SETTLED, (queue_id, block)).rowcount
                break
            kept += number
    return forgotten


def clean_up(transaction: Transaction, older_than_s: float) -> int:
    """Forget what is older; messages and dead letters are never touched."""
    db, now = transaction.db, transaction.now
    before = now - older_than_s
    forgotten = forget_settled(transaction, 1 << 62, before)
    forgotten += db.execute(_OLD_KEYS, (now,)).rowcount + db.execute(_KEYS_BEFORE, (before,)).rowcount
    forgotten += db.execute(_OLD_VALUES, (now,)).rowcount
    return forgotten + db.execute(_OLD_NOTES, (before,)).rowcount
