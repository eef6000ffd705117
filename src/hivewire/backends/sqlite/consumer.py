"""One member's part of one queue."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hivewire.backend import Consumer, Fetched, Ownership, QueueSpec, Unfinished
from hivewire.backends.sqlite import settling
from hivewire.backends.sqlite.members import Membership
from hivewire.backends.sqlite.memory import Settled
from hivewire.backends.sqlite.schema import lease_clock
from hivewire.backends.sqlite.storing import REPLY_PREFIX, declare
from hivewire.backends.sqlite.taking import Hold, Wanted, take
from hivewire.backends.sqlite.transaction import Queue, Transaction
from hivewire.backends.sqlite.writer import Operation
from hivewire.errors import Closed
from hivewire.rules.priority import Shares

if TYPE_CHECKING:
    from hivewire.backends.sqlite.backend import SQLiteBackend


class Claim(ABC):
    """A fetch that waits with the writer."""

    __slots__ = ("consumer", "dead", "epoch", "lanes", "limit", "queue", "run", "starting")
    hands_out: ClassVar[bool] = True

    def __init__(self, consumer: SQLiteConsumer, limit: int, lanes: int, run: int, starting: int) -> None:
        self.consumer = consumer
        self.queue = consumer.queue
        self.limit = limit
        self.lanes = lanes
        self.run = run
        self.starting = starting
        self.dead = False
        self.epoch = 0

    def attempt(self, transaction: Transaction) -> Sequence[Fetched]:
        """In the writer's thread."""
        return self.consumer.take(transaction, self)

    def deliver(self, taken: Sequence[Fetched], error: BaseException | None) -> None:
        if error is None:
            self.consumer.backend.epoch = self.epoch or self.consumer.backend.epoch
        self._answer(taken, error)

    @abstractmethod
    def _answer(self, taken: Sequence[Fetched], error: BaseException | None) -> None: ...

    @abstractmethod
    def give_up(self) -> None: ...


class Fetching(Claim):
    """Somebody awaits it. What it gets after it was given up is kept for the next fetch."""

    __slots__ = ("future",)

    def __init__(self, consumer: SQLiteConsumer, limit: int, lanes: int, run: int, starting: int) -> None:
        super().__init__(consumer, limit, lanes, run, starting)
        self.future: asyncio.Future[Sequence[Fetched]] = asyncio.get_running_loop().create_future()

    def once(self, transaction: Transaction) -> Sequence[Fetched]:
        return () if self.dead else self.attempt(transaction)

    def _answer(self, taken: Sequence[Fetched], error: BaseException | None) -> None:
        if error is not None:
            if not self.future.done():
                self.future.set_exception(error)
        elif self.future.done():
            self.consumer.keep(taken)
        else:
            self.future.set_result(taken)

    def has_taken(self) -> bool:
        return self.future.done() and not self.future.cancelled() and self.future.exception() is None

    def give_up(self) -> None:
        self.dead = True
        if not self.future.done():
            self.future.set_result(())


class Asked(Claim):
    """The owner is told of it. Given up, it still brings what was taken just before."""

    __slots__ = ()

    def _answer(self, taken: Sequence[Fetched], error: BaseException | None) -> None:
        self.consumer.came(taken, error)

    def give_up(self) -> None:
        self.dead = True


class ClaimNow(Operation):
    """A fetch that does not wait."""

    __slots__ = ("claim",)
    hands_out: ClassVar[bool] = True

    def __init__(self, claim: Fetching) -> None:
        super().__init__(claim.future, claim.once, (), durable=False)
        self.claim = claim

    def deliver(self, value: Any, error: BaseException | None) -> None:
        self.claim.deliver(value, error)


class SQLiteConsumer(Consumer):
    """`out` is changed in the writer's thread only: each record that is taken and not settled, by its place."""

    tells = True
    __slots__ = (
        "_asked", "_claims", "_closed", "_is_mailbox", "_kept", "_settled", "_shares", "backend", "membership", "out",
        "out_token", "owner", "queue", "queue_name",
    )  # fmt: skip

    def __init__(self, backend: SQLiteBackend, queue: QueueSpec, membership: Membership, owner: Ownership) -> None:
        self.backend = backend
        self.membership = membership
        self.owner = owner
        self.queue = 0
        self.queue_name = queue.name
        self._is_mailbox = queue.name.startswith(REPLY_PREFIX)
        self.out: dict[int, Hold] = {}
        self.out_token = 0
        """The life in which it was taken."""
        self._settled: Settled | None = None
        self._shares = Shares()
        self._kept: list[Fetched] | tuple[()] = ()
        """Taken for a fetch that was given up, for the next one."""
        self._claims: tuple[Fetching, ...] = ()
        self._asked: Asked | None = None
        self._closed = False

    # -- on the event loop

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        if self._closed or limit <= 0 or lanes <= 0 or run <= 0:
            return ()
        if self._kept:
            kept, self._kept = self._kept[:limit], self._kept[limit:]
            return kept
        claim = Fetching(self, limit, lanes, run, starting)
        self._claims = (*self._claims, claim)
        timer: asyncio.TimerHandle | None = None
        try:
            if wait_s > 0:
                timer = asyncio.get_running_loop().call_later(wait_s, claim.give_up)
                self.backend.writer.park(claim)
            else:
                self.backend.writer.put(ClaimNow(claim))
            return await claim.future
        except asyncio.CancelledError:
            if claim.has_taken():  # it came in the same turn of the loop as the cancellation
                self.keep(claim.future.result())
            raise
        finally:
            claim.dead = True
            self._claims = tuple(other for other in self._claims if other is not claim)
            if timer is not None:
                timer.cancel()

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        writer = self.backend.writer
        if self._closed:
            raise Closed(f"receive from {self.queue_name}: it was left")
        self._asked = Asked(self, limit, lanes, run, starting)
        writer.park(self._asked)
        return (), True

    def ask_no_more(self) -> None:
        if self._asked is not None:
            self._asked.give_up()

    def came(self, taken: Sequence[Fetched], error: BaseException | None) -> None:
        self._asked = None
        if not self._closed:  # else it is given back by `end`
            self.owner.came(taken, error)

    def keep(self, taken: Sequence[Fetched]) -> None:
        """Records whose fetch was cancelled, or ran out of time, just when they came."""
        waiting = next((claim for claim in self._claims if not claim.future.done()), None)
        if waiting is not None:
            waiting.dead = True
            waiting.future.set_result(taken)
        elif taken and taken[0].token == self.membership.token:
            self._kept = [*self._kept, *taken]

    def holds(self, fetched: Fetched) -> bool:
        """Once refused, that life is over: the engine forgets what it has taken, and a renewal that is just being
        stored, or a transaction that is rolled back, must not bring the life back."""
        membership = self.membership
        if fetched.token == membership.token > membership.over and membership.until > lease_clock():
            return True
        membership.over = max(membership.over, fetched.token)
        return False

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        refused: Sequence[Fetched] = await self._do(settling.start, batch, durable=False)
        return refused

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return await self.settle_soon(done, rest)

    def settle_soon(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()
    ) -> asyncio.Future[Sequence[Fetched]]:
        return self._do(settling.settle, done, rest)

    def _do(self, function: Any, *arguments: Any, durable: bool = True) -> asyncio.Future[Any]:
        return self.backend.writer.submit(function, self, *arguments, durable=durable)

    def lost(self) -> None:
        self._kept = ()
        if not self._closed:
            self.owner.lost({0})

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for claim in self._claims:
            claim.give_up()
        if self._asked is not None:
            self._asked.give_up()
            self.owner.came((), Closed(f"receive from {self.queue_name}: it was left"))
        self._kept = ()
        await self.backend.leave(self)

    # -- in the writer's thread

    def register(self, transaction: Transaction) -> Queue:
        """Join, and see to it that the queue is there: a reply mailbox is dropped when its member's lease ends."""
        queue = transaction.queue(self.queue) if self.queue else None
        if queue is None:
            queue = declare(transaction, QueueSpec(name=self.queue_name, cap=self.backend.cap))
            self._set_queue(transaction, queue.id)
        before = self.membership.token
        token = self.membership.join(transaction)
        if self._is_mailbox and (before != token or queue.seq == 0):
            self.membership.adopt(transaction, queue.id)
        return queue

    def _set_queue(self, transaction: Transaction, queue: int) -> None:
        transaction.undo.append((self._set_back, self.queue, self._settled))
        self.queue, self._settled = queue, self.backend.settled(queue)

    def _set_back(self, queue: int, settled: Settled | None) -> None:
        self.queue, self._settled = queue, settled

    def take(self, transaction: Transaction, claim: Claim) -> Sequence[Fetched]:
        if self._closed:
            return ()
        queue = self.register(transaction)
        token = self.membership.token
        if token != self.out_token:
            self.out.clear()  # what an earlier life held is not ours any more
            self.out_token = token
        wanted = Wanted(token, claim.limit, claim.run, claim.starting)
        claim.epoch = transaction.epoch or 0
        if self._settled is None:
            return ()
        holds = take(transaction, queue, wanted, claim.lanes, self.backend.packs, self._settled, self._shares)
        if not holds:
            return ()
        out = self.out
        transaction.undo.append((_forget, out, holds))
        for hold in holds:
            out.update(dict.fromkeys(hold.seqs, hold))
        return holds[0].taken if len(holds) == 1 else [fetched for hold in holds for fetched in hold.taken]

    def end(self, transaction: Transaction, is_last: bool) -> None:
        """And with it those that could not end before, while the file was in trouble."""
        for consumer in self.membership.owing:
            settling.give_back(transaction, consumer)
        settling.give_back(transaction, self)
        if is_last:
            self.membership.leave(transaction)


def _forget(out: dict[int, Hold], holds: Sequence[Hold]) -> None:
    for hold in holds:
        for seq in hold.seqs:
            out.pop(seq, None)
