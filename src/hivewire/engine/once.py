"""An effect that happens once: claimed before, its result stored before it is visible."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from hivewire.backend import Backend, Entry
from hivewire.engine.tasks import Tasks
from hivewire.errors import BackendError, Closed, HivewireError, LeaseLost, Reject
from hivewire.ids import new_id
from hivewire.rules.backoff import Backoff
from hivewire.rules.effect import Noted, follows

_PREFIX = "once/"
_FIRST_PAUSE_S = 0.005
_MOST_PAUSE_S = 0.25
_STORE_S: Final = 30.0
"""What has happened is to be remembered: for so long the store is waited for."""
_LINGER_S: Final = 1.0
"""For so long a caller that is cancelled waits for that: all that runs may end with it."""
_encode = msgspec.json.encode

Fn = Callable[[], Awaitable[Any]]


class Once:
    """One effect by name. Of those who ask at the same time, one computes and the others wait for its result; a claim
    that is not renewed for `lease_s` is somebody else's. What is known of it is kept for `keep_s` after it changed.
    """

    def __init__(self, backend: Backend, tasks: Tasks, name: str, *, lease_s: float, keep_s: float) -> None:
        self._backend = backend
        self._tasks = tasks
        self._key = _PREFIX + name
        self._name = name
        self._lease_s = lease_s
        self._keep_s = keep_s
        self._owner = new_id()
        self._version = 0
        self._changing = asyncio.Lock()

    async def result(self, fn: Fn, find: Fn | None) -> Any:
        """The stored result, else what `find` finds of an earlier attempt, else that of `fn`; stored before it is
        returned. Raises `LeaseLost` when this process was silent for so long that somebody else took the effect over.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            entry = await self._backend.get(self._key)
            noted = _noted(entry)
            step = follows(noted, self._backend.now())
            if step == "take":
                assert noted is not None
                return msgspec.json.decode(noted.value)
            if step == "wait":
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MOST_PAUSE_S)
            elif await self._claim(entry):
                return await self._make(fn, find if step == "look" else None)

    async def _claim(self, seen: Entry) -> bool:
        self._version = seen.version
        try:
            return await self._note(self._claimed())
        except asyncio.CancelledError:  # it may be claimed all the same
            with suppress(Closed):
                self._tasks.start(self._note_left(), f"leave {self._name}")
            raise

    def _claimed(self) -> Noted:
        return Noted("claimed", self._owner, self._backend.now() + self._lease_s)

    async def _make(self, fn: Fn, find: Fn | None) -> Any:
        ended = asyncio.Event()
        renewing = asyncio.create_task(self._renew(ended), name=f"keep {self._name}")
        try:
            value = await find() if find is not None else None
            if value is None:
                value = await fn()
            done = Noted("done", self._owner, value=msgspec.Raw(_encode(value)))
        except BaseException:
            await asyncio.shield(self._leave(ended, renewing))
            raise
        ended.set()
        # Stored also when the caller is cancelled: it would happen again.
        storing = self._tasks.start(self._outcome(done, renewing), f"store {self._name}")
        try:
            outcome = await asyncio.shield(storing)
        except asyncio.CancelledError:
            await asyncio.wait([storing], timeout=_LINGER_S)
            raise
        if isinstance(outcome, BackendError) and not outcome.retryable:  # it would happen again, and end here again
            raise Reject(f"once {self._name}: it has happened, and its result cannot be stored: {outcome}") from outcome
        if isinstance(outcome, HivewireError):
            raise outcome
        return msgspec.json.decode(outcome)

    async def _outcome(self, done: Noted, renewing: asyncio.Task[None]) -> msgspec.Raw | HivewireError:
        await renewing  # a change under way is not broken off: its version would be unknown
        try:
            return await self._stored(done)
        except HivewireError as error:
            return error

    async def _stored(self, done: Noted) -> msgspec.Raw:
        loop = asyncio.get_running_loop()
        give_up_at, backoff = loop.time() + _STORE_S, Backoff(_FIRST_PAUSE_S, _MOST_PAUSE_S)
        while True:
            try:
                return done.value if await self._note(done) else await self._of_another()
            except BackendError as error:
                if not error.retryable or loop.time() > give_up_at:
                    raise
            await asyncio.sleep(backoff.next_s())

    async def _leave(self, ended: asyncio.Event, renewing: asyncio.Task[None]) -> None:
        """The attempt ends without a result: the next one need not wait for the claim to run out."""
        ended.set()
        await renewing
        await self._note_left()

    async def _note_left(self) -> None:
        with suppress(BackendError):
            await self._note(Noted("left", self._owner))

    async def _of_another(self) -> msgspec.Raw:
        """This process was silent for too long. Who has a result by now, stored it first."""
        noted = _noted(await self._backend.get(self._key))
        if noted is not None and noted.state == "done":
            return noted.value
        raise LeaseLost(f"once {self._name}: this process was silent for {self._lease_s:g} s; somebody else is at it")

    async def _renew(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await ended.wait()
            except TimeoutError:
                with suppress(BackendError):  # the store is away: the next turn tries again
                    if not await self._note(self._claimed()):
                        return

    async def _note(self, noted: Noted) -> bool:
        """Whether it was still ours to change. An own change whose answer was lost is found by its owner."""
        async with self._changing:
            for _ in range(2):
                stored = await self._backend.put(self._key, _encode(noted), self._version, ttl_s=self._keep_s)
                if stored is not None:
                    self._version = stored.version
                    return True
                entry = await self._backend.get(self._key)
                present = _noted(entry)
                if present is None or present.owner != self._owner:
                    return False
                self._version = entry.version
            return False


def _noted(entry: Entry) -> Noted | None:
    return msgspec.json.decode(entry.value, type=Noted) if entry.version else None
