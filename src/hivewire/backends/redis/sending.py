"""Storing what is sent: plainly while a queue is known and far from its cap, by a script else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence

from hivewire.backend import Append, Duplicate, QueueSpec, Record
from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import PACKED, Command, Reply
from hivewire.backends.redis.inlet import announced
from hivewire.backends.redis.keys import (
    EXPIRING,
    FOREIGN_CHANNEL,
    FOREIGN_STREAM,
    GROUP_PREFIX,
    INLET_BELL,
    INTERNAL_PREFIX,
    QUEUES,
    REPLY_PREFIX,
    Names,
)
from hivewire.backends.redis.link import Link, good, is_on_its_way
from hivewire.backends.redis.packing import hashed, level, pack_head, ttl_ms
from hivewire.backends.redis.room import Known, Rooms, grant
from hivewire.errors import BackendError, ConnectionLost, QueueFull, QueueMissing

log = logging.getLogger(__name__)

_MOST_MAILBOXES = 1_000


class Sending:
    """Appends in the order of the calls: all commands go out on one connection, in the turn of the call."""

    def __init__(
        self,
        link: Link,
        shards: int,
        cap: int,
        here: Container[str],
        tell_here: Callable[[str, int], bool],
        *,
        interop: bool = False,
    ) -> None:
        """`here`: the base names of queues that this process consumes. `tell_here`: whether a consumer of this process
        owns that shard; it reads anew then. `interop`: what programs of the reference can read goes where they read
        it."""
        self._here = here
        self._interop = interop
        self._tell_here = tell_here
        self._link = link
        self._shards = shards
        self._cap = cap
        self._known: dict[str, Known] = {}
        self._mailboxes: deque[str] = deque()
        """Those that are known, oldest first."""
        self._scripted: dict[str, int] = {}
        """Queues to which something is under way by a script, how often. Behind it nothing goes plainly: the server may
        refuse the one and take the other."""

        self._rooms = Rooms(link, shards)

    def defaults(self, queue: str) -> QueueSpec:
        shards = 1 if queue.startswith(INTERNAL_PREFIX) else self._shards
        return QueueSpec(name=queue, shards=shards, cap=self._cap)

    def forget(self, queue: str | None = None) -> None:
        """The queue may have changed, or all of them."""
        if queue is None:
            self._known.clear()
        else:
            self._known.pop(queue, None)

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        stored = self._one_soon(batch)
        return await self._append(batch) if stored is None else await self._outcome(batch[0].queue, stored)

    def _one_soon(self, batch: Sequence[Append]) -> asyncio.Future[BackendError | None] | None:
        """Replies, above all: they come one by one."""
        entry = batch[0] if len(batch) == 1 else None
        if entry is None or len(entry.records) != 1 or entry.delay_s > 0 or entry.idempotency_key is not None:
            return None
        return self.soon(entry.queue, entry.records[0])

    async def _outcome(self, queue: str, stored: asyncio.Future[BackendError | None]) -> Mapping[int, Exception]:
        problem = await stored
        if problem is None:
            return {}
        self.forget(queue)  # a stream that is not there: the script says what that means
        return {0: problem}

    async def _append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        commands: list[Command] = []
        scripted: list[tuple[int, int, Append]] = []
        """Place among the commands, first running number, and what it stores."""
        plain: list[tuple[int, int, Append]] = []
        """Place of the first command, its running number, and what they store."""
        rung: dict[tuple[Names, int], None] = {}
        expiring: list[str] = []
        foreign: list[Names] = []
        ordered: list[str] = []
        """Queues that get something by a script which is not delayed."""
        number = 0
        for entry in batch:
            known = self._known.get(entry.queue) or self._new(entry.queue)
            if self._interop and _is_for_all(entry):
                plain.append((len(commands), number, entry))
                commands += [_for_all(entry.queue, record) for record in entry.records]
                foreign.append(known.names)
                number += len(entry.records)
            elif self._is_plain(entry, known):
                plain.append((len(commands), number, entry))
                self._plainly(entry, known, commands, rung)
                number += len(entry.records)
            else:
                scripted.append((len(commands), number, entry))
                ordered += [entry.queue] if entry.delay_s <= 0 else []
                commands.append(self._script(entry, known.names))
                if any(record.ttl_s is not None for record in entry.records):
                    expiring.append(entry.queue)
                number += len(entry.records)
        lists = len(commands)
        listed = [entry.queue for _, _, entry in scripted if not entry.queue.startswith(REPLY_PREFIX)]
        if listed:
            commands.append(("SADD", QUEUES, *dict.fromkeys(listed)))
        if expiring:
            commands.append(("SADD", EXPIRING, *dict.fromkeys(expiring)))
        lists_end = len(commands)
        if self._interop:
            commands += _announcements(batch)
        stored = self._link.post(commands, firm=True)
        for names, shard in rung:
            self._ring(names, shard)
        for names in foreign:
            self._link.ring(names.news, INLET_BELL.decode())
        answers = await (stored if not ordered else self._behind(ordered, stored))
        problems: dict[int, Duplicate | Exception] = {}
        for place, first, entry in plain:
            for at in range(len(entry.records)):
                if answers[place + at].__class__ is not bytes:
                    self._note(problems, first + at, entry.queue, answers[place + at])
        for place, first, entry in scripted:
            self._answered(problems, first, entry, answers[place])
            for answer in answers[lists:lists_end]:
                self._listed(problems, first, entry, answer)
        return problems

    async def _behind(self, queues: Sequence[str], stored: asyncio.Future[list[Reply]]) -> list[Reply]:
        """The answers; until they are here nothing goes plainly to these queues."""
        for queue in queues:
            self._scripted[queue] = self._scripted.get(queue, 0) + 1
        try:
            return await stored
        finally:
            for queue in queues:
                self._scripted[queue] -= 1
                if not self._scripted[queue]:
                    del self._scripted[queue]

    @staticmethod
    def _plainly(entry: Append, known: Known, commands: list[Command], rung: dict[tuple[Names, int], None]) -> None:
        """A command for each record."""
        names, is_mailbox, competing = known.names, known.is_mailbox, known.competing
        last, shard = None, 0
        for record in entry.records:
            if competing or record.key != last:  # runs of one key are common
                last, shard = record.key, known.shard(record)
                rung[names, shard] = None
            if is_mailbox:
                commands.append((PACKED, names.base, names.packed_if_there(shard, pack_head(record), record.body)))
            else:
                commands.append((PACKED, names.base, names.xadd(shard, pack_head(record), record.body)))

    def soon(self, queue: str, record: Record) -> asyncio.Future[BackendError | None] | None:
        """Send one plain record in this turn of the loop. None: nothing was done, use `append`."""
        known = self._known.get(queue)
        if (
            known is None
            or (known.room < 1 and not known.is_mailbox)
            or record.ttl_s is not None
            or known.until < (now := time.monotonic())
            or self._interop
            or (self._scripted and queue in self._scripted)
        ):
            return None
        names, shard = known.names, known.by_key.get(record.key)
        if shard is None:
            shard = known.shard(record)
        head, is_mailbox = pack_head(record), known.is_mailbox
        packed = names.packed_if_there(shard, head, record.body) if is_mailbox else names.xadd(shard, head, record.body)
        if names.base in self._here:
            stored = self._link.store(names.base, packed)
            if stored is not None:
                self._ring(names, shard)
        else:
            stored = self._link.store(names.base, packed, names.bell, shard)
        if stored is not None and not is_mailbox:
            known.room -= 1
            if now > known.renew_at or known.room < known.renew_below:
                self._rooms.renew(known)
        return stored

    def _ring(self, names: Names, shard: int) -> None:
        """Whoever owns the shard has something to read. An owner in this process is told at once, and nobody else:
        what it gives up later, it gives up over the connection by which the record goes before."""
        if names.base not in self._here or not self._tell_here(names.base, shard):
            self._link.ring(names.bell, shard)

    def _new(self, queue: str) -> Known:
        known = Known(Names(queue), is_mailbox=queue.startswith(REPLY_PREFIX))
        if known.is_mailbox:  # they come and go
            self._mailboxes.append(queue)
            if len(self._mailboxes) > _MOST_MAILBOXES:
                self._known.pop(self._mailboxes.popleft(), None)
        self._known[queue] = known
        return known

    def _is_plain(self, entry: Append, known: Known) -> bool:
        if entry.delay_s > 0 or entry.idempotency_key is not None or entry.queue in self._scripted:
            return False
        now = time.monotonic()
        if known.shards == 0 or known.until < now or (known.room < len(entry.records) and not known.is_mailbox):
            return False
        for record in entry.records:
            if record.ttl_s is not None:
                return False
        if not known.is_mailbox:  # of which the script says once a second whether somebody still waits there
            known.room -= len(entry.records)
            if now > known.renew_at or known.room < known.renew_below:
                self._rooms.renew(known)
        return True

    def _script(self, entry: Append, names: Names) -> Command:
        records = entry.records
        spec = self.defaults(entry.queue)
        arguments: list[str | bytes | int] = []
        for record in records:
            arguments += [hashed(record.key), level(record), pack_head(record), record.body, ttl_ms(record)]
        return scripts.run(
            scripts.APPEND,
            names.base,
            int(entry.room),
            max(1, round(entry.delay_s * 1000)) if entry.delay_s > 0 else 0,
            max(1, round(entry.window_s * 1000)) if entry.idempotency_key is not None else 0,
            entry.idempotency_key or "",
            spec.shards,
            spec.cap,
            int(entry.queue.startswith(REPLY_PREFIX)),
            records[0].id if records else "",
            *arguments,
        )

    def _note(self, problems: dict[int, Duplicate | Exception], first: int, queue: str, answer: Reply) -> None:
        try:
            if good(answer, "store a message") is None:  # the stream is not there: the script says what that means
                self.forget(queue)
                problems[first] = ConnectionLost(f"send to {queue}: what was known of it holds no longer")
        except BackendError as error:
            problems[first] = error

    def _listed(self, problems: dict[int, Duplicate | Exception], first: int, entry: Append, answer: Reply) -> None:
        """What stands in no list is found by nobody who looks at all queues: it counts as not stored, and is sent
        again."""
        try:
            good(answer, f"list {entry.queue}")
        except BackendError as error:
            for place in range(first, first + len(entry.records)):
                if not isinstance(problems.get(place), Exception):
                    problems[place] = error

    def _answered(self, problems: dict[int, Duplicate | Exception], first: int, entry: Append, answer: Reply) -> None:
        places = range(first, first + len(entry.records))
        known = self._known.get(entry.queue)
        if known is not None and is_on_its_way(answer):
            self._rooms.renew_by_parts(known)  # so that what can go plainly does, when it is tried again
        try:
            what, *more = good(answer, f"store a message for {entry.queue}")
        except BackendError as error:
            problems.update(dict.fromkeys(places, error))
            return
        if what == b"stored":
            shards, cap, mode, held, stored = more
            if known is not None:
                grant(known, shards, cap, mode, held)
            if stored < len(entry.records):
                text = f"send to {entry.queue}: it holds {held} messages and its cap is {cap}; wait for its workers"
                problems.update(dict.fromkeys(places[stored:], QueueFull(f"{text}, or raise queue_cap")))
        elif what == b"duplicate":
            problems.update(dict.fromkeys(places, Duplicate(more[0].decode())))
        else:
            self.forget(entry.queue)
            missing = QueueMissing(f"send to {entry.queue}: nobody waits for replies there any more")
            problems.update(dict.fromkeys(places, missing))


def _is_for_all(entry: Append) -> bool:
    """Whether a program of the reference can read it: what must wait or be told from a copy stays in our queue."""
    return not (entry.delay_s > 0 or entry.idempotency_key is not None or entry.queue.startswith(INTERNAL_PREFIX))


def _for_all(queue: str, record: Record) -> Command:
    fields = ("message", record.body, "type", record.type, "from", record.sender)
    return ("XADD", FOREIGN_STREAM + queue, "*", *fields)


def _announcements(batch: Sequence[Append]) -> list[Command]:
    """Broadcasts, as the reference's programs hear them."""
    return [
        ("PUBLISH", FOREIGN_CHANNEL + entry.queue.removeprefix(GROUP_PREFIX), announced(record.body))
        for entry in batch
        if entry.queue.startswith(GROUP_PREFIX)
        for record in entry.records
        if not record.type.startswith("hivewire.")
    ]
