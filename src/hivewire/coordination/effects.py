"""Effects that happen once, remembered in a ledger: a task for each, owned while somebody is at it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from hivewire.coordination.ledger import Guard, Lease, Ledger, Task, TaskChange, TaskStatus
from hivewire.errors import (
    BackendError,
    Closed,
    HivewireError,
    InvalidTransition,
    LeaseLost,
    LedgerError,
    Reject,
    SettingsError,
    TaskExists,
    TaskMissing,
)
from hivewire.ids import derived_id, new_id
from hivewire.rules.backoff import Backoff

TYPE: Final = "effect"
"""The type of the tasks that remember effects."""

_FIRST_PAUSE_S: Final = 0.005
_MOST_PAUSE_S: Final = 0.25
_STORE_S: Final = 30.0
"""What has happened is to be remembered: for so long the ledger is waited for."""
_LINGER_S: Final = 1.0
"""For so long a caller that is cancelled waits for that: all that runs may end with it."""

Fn = Callable[[], Awaitable[Any]]
T = TypeVar("T")


class LedgerEffects:
    """Of those who ask for one effect at the same time, one computes and the others wait for its result.

    The task is `pending` until the first begins, `in_progress` until a result is stored, then `completed` with the
    result as its output. Writes are fenced: who was silent for longer than `lease_s` can store nothing any more.
    """

    def __init__(self, ledger: Ledger, *, lease_s: float = 10.0) -> None:
        if not isinstance(ledger, Ledger):
            raise SettingsError(f"effects are kept in what hivewire.open_ledger gives, not in {ledger!r:.80}")
        if not lease_s > 0:
            raise SettingsError(f"lease_s of effects is above 0, not {lease_s!r}")
        self._ledger = ledger
        self._lease_s = lease_s
        self._endings: set[asyncio.Task[Any]] = set()
        """What is on its way to the ledger."""
        self._users = 0

    def begin_use(self) -> None:
        """A worker serves with it, until `end_use`."""
        self._users += 1

    async def end_use(self) -> None:
        """What is on its way to a ledger that is away when the last worker has left, and nobody calls `once`, is given
        up: the lease runs out by itself."""
        self._users -= 1
        if not self._users and self._endings:
            await asyncio.wait(self._endings, timeout=_LINGER_S)
        if not self._users and (left := list(self._endings)):
            for ending in left:
                ending.cancel()
            await asyncio.wait(left)

    def _start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        ending = asyncio.create_task(coroutine, name=name)
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def once(self, name: str, fn: Fn, find: Fn | None = None) -> Any:
        """The stored result; else, after an attempt that ended without one, what `find` finds; else that of `fn`.

        Stored before it is returned. Raises `LeaseLost` when somebody else has taken the effect over meanwhile, and
        `Reject` when the ledger refuses the result of what has happened.
        """
        self._users += 1
        try:
            return await self._once(name, fn, find)
        finally:
            self._users -= 1

    async def _once(self, name: str, fn: Fn, find: Fn | None) -> Any:
        id, owner = derived_id(TYPE, name), new_id()
        pause_s = _FIRST_PAUSE_S
        while (task := await self._known(id, name)).status is not TaskStatus.COMPLETED:
            lease = await self._ledger.acquire(f"{TYPE}:{id}", owner, self._lease_s)
            if lease is not None:
                return await self._owned(id, lease, fn, find)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)
        return task.output

    async def _known(self, id: str, name: str) -> Task:
        try:
            return await self._ledger.get_task(id)
        except TaskMissing:
            try:
                return await self._ledger.create_task(Task(id=id, name=name, type=TYPE))
            except TaskExists:  # somebody was faster
                return await self._ledger.get_task(id)

    async def _owned(self, id: str, lease: Lease, fn: Fn, find: Fn | None) -> Any:
        keeping = _Keeping(self._ledger, lease, self._lease_s)
        renewing = asyncio.create_task(keeping.run(), name=f"keep effect {id}")
        try:
            task = await self._ledger.get_task(id)  # it may have ended before it was ours
            if task.status is TaskStatus.COMPLETED:
                await asyncio.shield(self._start(self._leave(keeping, renewing), f"leave effect {id}"))
                return task.output
            value = None
            if task.status is TaskStatus.PENDING:
                change = TaskChange(status=TaskStatus.IN_PROGRESS)
                await self._ledger.update_task(id, change, Guard(lease=keeping.lease))
            elif find is not None:
                value = await find()
            if value is None:
                value = await fn()
        except asyncio.CancelledError:
            leaving = self._start(self._leave(keeping, renewing), f"leave effect {id}")
            await asyncio.wait([leaving], timeout=_LINGER_S)
            raise
        except BaseException:
            await asyncio.shield(self._start(self._leave(keeping, renewing), f"leave effect {id}"))
            raise
        # Stored also when the caller is cancelled: it would happen again.
        ending = self._start(self._outcome(id, value, keeping, renewing), f"store effect {id}")
        try:
            outcome, error = await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait([ending], timeout=_LINGER_S)
            raise
        if isinstance(error, BackendError | LedgerError) and not error.retryable:  # it would end here again
            raise Reject(f"the effect has happened, and its result cannot be stored: {error}") from error
        if error is not None:
            raise error
        return outcome

    async def _outcome(
        self, id: str, value: Any, keeping: _Keeping, renewing: asyncio.Task[None]
    ) -> tuple[Any, HivewireError | None]:
        try:
            outcome: tuple[Any, HivewireError | None] = await self._stored_in_time(id, value, keeping), None
        except HivewireError as error:
            outcome = None, error
        except BaseException:  # nobody waits for the ledger any more, or a bug: the lease runs out by itself
            renewing.cancel()
            await asyncio.wait([renewing])
            raise
        await self._leave(keeping, renewing)
        return outcome

    async def _stored_in_time(self, id: str, value: Any, keeping: _Keeping) -> Any:
        loop = asyncio.get_running_loop()
        give_up_at, backoff = loop.time() + _STORE_S, Backoff(_FIRST_PAUSE_S, _MOST_PAUSE_S)
        while True:
            try:
                return await self._stored(id, value, keeping)
            except BackendError as error:
                if not error.retryable or loop.time() > give_up_at:
                    raise
            except InvalidTransition:  # by an attempt whose answer was lost
                task = await self._ledger.get_task(id)
                if task.status is TaskStatus.COMPLETED:
                    return task.output
                raise
            await asyncio.sleep(backoff.next_s())

    async def _stored(self, id: str, value: Any, keeping: _Keeping) -> Any:
        try:
            return (await self._ledger.complete_task(id, value, Guard(lease=keeping.lease))).output
        except LeaseLost:
            task = await self._ledger.get_task(id)
            if task.status is TaskStatus.COMPLETED:
                return task.output  # who took it over has stored its result first
            raise

    async def _leave(self, keeping: _Keeping, renewing: asyncio.Task[None]) -> None:
        """The next one need not wait for the lease to run out."""
        keeping.ended.set()
        try:
            await renewing
            await self._ledger.release(keeping.lease)
        except (BackendError, Closed):  # the ledger is away: the lease runs out by itself
            return


class _Keeping:
    """A lease that is renewed until `ended`."""

    def __init__(self, ledger: Ledger, lease: Lease, lease_s: float) -> None:
        self._ledger = ledger
        self._lease_s = lease_s
        self.lease = lease
        self.ended = asyncio.Event()

    async def run(self) -> None:
        while not self.ended.is_set():
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await self.ended.wait()
            except TimeoutError:
                try:
                    self.lease = await self._ledger.renew(self.lease, self._lease_s)
                except LeaseLost:
                    return  # writes with it are refused
                except BackendError:
                    continue  # the ledger is away: the next turn tries again
