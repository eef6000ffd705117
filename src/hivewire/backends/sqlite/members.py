"""Who holds lanes: members with leases, their end, and what is kept of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from hivewire.backend import Member
from hivewire.backends.sqlite.schema import BLOCKED, OWNED, RANK, READY, boot_id, lease_clock
from hivewire.backends.sqlite.transaction import Transaction

if TYPE_CHECKING:
    from hivewire.backends.sqlite.consumer import SQLiteConsumer

_JOIN = "INSERT INTO members(name, pid, boot, lease_until, lease_s) VALUES (?, ?, ?, ?, ?)"
_RENEW = "UPDATE members SET lease_until = ? WHERE id = ? AND lease_until > ?"
_LEAVE = "DELETE FROM members WHERE id = ?"
_EXPIRED = "SELECT id FROM members WHERE boot <> ? OR lease_until <= ?"
_HELD = (
    "SELECT owner, queue, sum(taken), sum(running AND counted >= head) FROM lanes"
    f" WHERE state = {OWNED} AND (owner = ? OR owner NOT IN (SELECT id FROM members)) GROUP BY owner, queue"
)
_FREE = f"""
UPDATE lanes SET state = CASE WHEN due_at > :now THEN {BLOCKED} ELSE {READY} END,
  died = CASE WHEN running AND counted >= head THEN :died ELSE died END,
  running = 0, suspect_from = 0, suspect_to = taken_to, owner = NULL, taken = 0,
  rank = {RANK.format("head")}
WHERE owner = :member AND state = {OWNED}"""
_MAILBOXES = "SELECT id FROM queues WHERE owner = ?"
_ADOPT = "UPDATE queues SET owner = ? WHERE id = ?"
_HEIR = "UPDATE queues SET owner = ? WHERE owner = ?"
_DUE = f"UPDATE lanes SET state = {READY}, due_at = 0 WHERE state = {BLOCKED} AND due_at <= ? RETURNING queue"
DROP = (
    "DELETE FROM packs WHERE lane >= :queue << 40 AND lane < (:queue + 1) << 40",
    "DELETE FROM holes WHERE lane >= :queue << 40 AND lane < (:queue + 1) << 40",
    "DELETE FROM lanes WHERE queue = :queue",
    "DELETE FROM scheduled WHERE queue = :queue",
    "DELETE FROM settled WHERE queue = :queue",
    "DELETE FROM idempotent WHERE queue = :queue",
    "DELETE FROM dead WHERE queue = (SELECT name FROM queues WHERE id = :queue)",
    "DELETE FROM queues WHERE id = :queue",
)


class Membership:
    """One member of this process, in its present life: `token` 0 means that it must register first.

    Changed in the writer's thread only, but for `over`, and `on_lost`, which is called on the event loop.
    """

    def __init__(self, member: Member, on_lost: Callable[[Membership, int], None]) -> None:
        self.member = member
        self.token = 0
        self.until = 0.0
        """When the lease ends, by what was stored last."""
        self.over = 0
        """Lives up to this token have ended for this process, whatever the file says: set on the event loop."""
        self.owing: tuple[SQLiteConsumer, ...] = ()
        """They have left, and what they held could not be given back yet: the lease of the others would keep it."""
        self._on_lost = on_lost

    def join(self, transaction: Transaction) -> int:
        """A token that is valid in this transaction; a new one if the lease has ended."""
        token = self.token
        if self.has_lease(transaction):
            return token
        self.lost(transaction)
        until = transaction.boot + self.member.lease_s
        row = (self.member.name, os.getpid(), boot_id(), until, self.member.lease_s)
        self._set(transaction, transaction.db.execute(_JOIN, row).lastrowid or 0)
        transaction.undo.append((setattr, self, "until", self.until))  # else it would be that of a life that is over
        self.until = until
        if token:
            transaction.db.execute(_HEIR, (self.token, token))
            expire(transaction, token)
        return self.token

    def has_lease(self, transaction: Transaction) -> bool:
        return self.token > self.over and transaction.has_lease(self.token, self.until)

    def lost(self, transaction: Transaction) -> None:
        """Note that this life is over; the engine is told once that is committed."""
        token = self.token
        if token:
            self._set(transaction, 0)
            transaction.committed.append(lambda: self._on_lost(self, token))

    def leave(self, transaction: Transaction) -> None:
        if self.token:
            _remove(transaction, self.token)
            self._set(transaction, 0)

    def adopt(self, transaction: Transaction, queue: int) -> None:
        """The queue is dropped with this member."""
        transaction.db.execute(_ADOPT, (self.token, queue))

    def _set(self, transaction: Transaction, token: int) -> None:
        before = self.token
        self.token = token
        transaction.undo.append((setattr, self, "token", before))
        if token:
            transaction.lease_ended(before)
            transaction.lease_began(token)


def renew(db: sqlite3.Connection, token: int, lease_s: float) -> float:
    """In a transaction of the caller's. Returns when the lease ends now; 0.0: it has ended, and stays so."""
    now = lease_clock()
    return now + lease_s if db.execute(_RENEW, (now + lease_s, token, now)).rowcount == 1 else 0.0


def expire(transaction: Transaction, token: int) -> None:
    """Free what a dead member held; its lanes say beside how many running records it died. While all lanes are looked
    through, also what is held in the name of who is not there at all: nobody else would ever free it."""
    db = transaction.db
    held = db.execute(_HELD, (token,)).fetchall()
    for member in {row[0] for row in held}:
        running = sum(row[3] for row in held if row[0] == member)
        db.execute(_FREE, {"now": transaction.now, "died": running, "member": member})
    for _, queue_id, taken, _ in held:
        transaction.woken.add(queue_id)
        queue = transaction.queue(queue_id)
        if queue is not None:
            queue.in_flight -= taken
            queue.dirty = True
    _remove(transaction, token)


def _remove(transaction: Transaction, token: int) -> None:
    for (queue,) in transaction.db.execute(_MAILBOXES, (token,)).fetchall():
        drop_queue(transaction, queue)
    transaction.db.execute(_LEAVE, (token,))
    transaction.lease_ended(token)


def drop_queue(transaction: Transaction, queue_id: int) -> None:
    for statement in DROP:
        transaction.db.execute(statement, {"queue": queue_id})
    queue = transaction.queue(queue_id)
    if queue is not None:
        transaction.forget_queue(queue)


def advance(transaction: Transaction) -> None:
    """What time brings about: leases end, and lanes that waited for a retry are ready again."""
    for (token,) in transaction.db.execute(_EXPIRED, (boot_id(), transaction.boot)).fetchall():
        expire(transaction, token)
    transaction.woken.update(row[0] for row in transaction.db.execute(_DUE, (transaction.now,)).fetchall())
