"""The thread that keeps watch: renews leases, sees what other processes store, and notices what falls due.

It has a connection of its own, so a long queue of writes never delays a renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hivewire.backends.sqlite import catalogue, members, tidying, trouble
from hivewire.backends.sqlite.file import File
from hivewire.backends.sqlite.members import Membership
from hivewire.backends.sqlite.schema import boot_id, lease_clock
from hivewire.backends.sqlite.transaction import Transaction
from hivewire.backends.sqlite.writer import Writer, call_on

log = logging.getLogger(__name__)

_BUSY_S = 0.001
_IDLE_S = 0.02
_STAY_AWAKE_S = 1.0
_TIDY_EACH_S = 5.0
_ASLEEP_S = 60.0
_ASK_AGAIN_S = 0.25
# The queues that have a ready lane, one look-up each, however many lanes they have.
_READY_QUEUES = """
WITH RECURSIVE found(queue) AS (
  SELECT min(queue) FROM lanes WHERE state = 1
  UNION ALL
  SELECT (SELECT min(queue) FROM lanes WHERE state = 1 AND queue > found.queue) FROM found WHERE found.queue NOT NULL)
SELECT queue FROM found WHERE queue NOT NULL"""
_NEXT_DUE = "SELECT (SELECT min(due_at) FROM lanes WHERE state = 3), (SELECT min(due_at) FROM scheduled)"
_NEXT_END = "SELECT min(lease_until), max(boot <> ?) FROM members"


class Keeper:
    def __init__(
        self,
        path: Path,
        writer: Writer,
        heard: Callable[[list[tuple[int, str, bytes]]], None],
        tidy: Callable[[Transaction], None],
    ) -> None:
        self._file = File(path)
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._heard = heard
        self._tidy = tidy
        self._poke = threading.Event()
        self._lock = threading.Lock()
        self._members: dict[Membership, float] = {}
        self._version = -1
        self._due_at = 0.0
        self._ends_at = 0.0
        self._pause = _IDLE_S
        self._awake_until = 0.0
        self._asleep = False
        self._tidy_at = time.monotonic() + _TIDY_EACH_S
        self._cursor: int | None = None
        self._stopping = False
        writer.on_parked = self._parked
        self._thread = threading.Thread(target=self._run, name="hivewire-sqlite-keeper", daemon=True)
        self._thread.start()

    # -- from the event loop

    def add(self, membership: Membership) -> None:
        with self._lock:
            self._members.setdefault(membership, time.monotonic() + membership.member.lease_s / 3)
        self._poke.set()

    def remove(self, membership: Membership) -> None:
        with self._lock:
            self._members.pop(membership, None)

    def listen_from(self, cursor: int) -> None:
        """Hand over notes after this one; a cursor that is set already stays."""
        if self._cursor is None:
            self._cursor = cursor
        self._poke.set()

    def _parked(self) -> None:
        if self._asleep:
            self._poke.set()

    async def close(self) -> None:
        self._stopping = True
        self._poke.set()
        await self._ended.wait()
        self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause = self._look()
            except Exception as error:  # the watch goes on: trouble with the file may end
                log.debug("watching the file failed", exc_info=error)
                if trouble.is_full(error):
                    self._file.make_room()
                self._file.close()
                pause = 0.2
            self._asleep = pause > _IDLE_S
            if self._asleep and self._writer.waiting_queues():
                pause = _IDLE_S  # somebody came to wait after the look, and saw nobody asleep
            self._poke.wait(pause)
            self._asleep = False
            self._poke.clear()
        self._file.close()
        call_on(self._loop, self._ended.set)

    def _look(self) -> float:
        is_new = not self._file.is_open
        db = self._file.connection()
        if is_new:
            db.execute("PRAGMA synchronous = NORMAL")
            self._version = -1
        renew_at = self._renew(db)
        now = time.monotonic()
        waiting = self._writer.waiting_queues()
        if waiting or self._cursor is not None:
            self._awake_until = now + _STAY_AWAKE_S
        elif now > self._awake_until:
            return min(max(renew_at - now, 0.0), _ASLEEP_S)
        version = db.execute("PRAGMA data_version").fetchone()[0]
        self._pause = min(self._pause * 1.5, _IDLE_S)
        if version != self._version:
            self._version = version
            if self._changed(db, set(waiting)):
                self._pause = _BUSY_S
        self._time_passes()
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_EACH_S
            self._writer.do(self._tidy)
            self._file.shorten_log()
            self._file.give_back_space()
        due_s = min(self._due_at - time.time(), self._ends_at - lease_clock(), renew_at - now)
        return min(max(due_s, 0.0005), self._pause)

    def _changed(self, db: sqlite3.Connection, waiting: set[int]) -> bool:
        """Somebody has written: this process or another. True: there was something for us."""
        ready: set[int] = set()
        notes: list[tuple[int, str, bytes]] = []
        if waiting:
            ready = waiting.intersection(row[0] for row in db.execute(_READY_QUEUES))
            if ready:
                self._writer.do(_wake, ready)
        due = [at for at in db.execute(_NEXT_DUE).fetchone() if at is not None]
        self._due_at = min(due, default=float("inf"))
        ends_at, stale = db.execute(_NEXT_END, (boot_id(),)).fetchone()
        self._ends_at = float("inf") if ends_at is None else 0.0 if stale else ends_at
        if self._cursor is not None:
            notes = catalogue.notes_after(db, self._cursor)
            if notes:
                self._cursor = notes[-1][0]
                call_on(self._loop, self._heard, notes)
        return bool(ready or notes)

    def _time_passes(self) -> None:
        if self._due_at <= time.time() or self._ends_at <= lease_clock():
            # Should the writer fail now, it is asked again soon.
            self._due_at, self._ends_at = time.time() + _ASK_AGAIN_S, lease_clock() + _ASK_AGAIN_S
            self._writer.do(self._advance)

    def _advance(self, transaction: Transaction) -> None:
        """In the writer's thread."""
        tidying.advance(transaction)
        self._version = -1  # look again when the next thing is due, even if this has changed nothing

    def _renew(self, db: sqlite3.Connection) -> float:
        """Renew what is a third into its lease. Returns when the next one is."""
        now = time.monotonic()
        with self._lock:
            due = [membership for membership, at in self._members.items() if at <= now and membership.token]
        if due:
            self._renew_these(db, due)
        with self._lock:
            for membership in due:
                if membership in self._members:
                    self._members[membership] = now + membership.member.lease_s / 3
            known = [at if m.token else now + m.member.lease_s / 3 for m, at in self._members.items()]
        return min(known, default=float("inf"))

    def _renew_these(self, db: sqlite3.Connection, due: list[Membership]) -> None:
        tokens = [(membership, membership.token) for membership in due]
        self._file.begin(min(membership.member.lease_s for membership in due) / 3)
        try:
            kept = [
                members.renew(db, token, membership.member.lease_s) if token > membership.over else 0.0
                for membership, token in tokens
            ]
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        for (membership, token), until in zip(tokens, kept, strict=True):
            if not until:
                self._writer.do(_lapse, membership, token)
            elif membership.token == token:
                membership.until = until


def _wake(transaction: Transaction, queues: set[int]) -> None:
    transaction.woken |= queues


def _lapse(transaction: Transaction, membership: Membership, token: int) -> None:
    if membership.token == token and not membership.has_lease(transaction):
        membership.lost(transaction)
        members.expire(transaction, token)
