"""Clients that are there while somebody needs them: each costs memory, five or six threads and its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Generic, TypeVar

from hivewire.errors import Closed

IDLE_S: Final = 3.0
"""So long a client stays that nobody uses: who looked once often looks again."""
_T = TypeVar("_T")
_Answer = TypeVar("_Answer")


class Fleeting(Generic[_T]):
    """Made for its first user, ended some seconds after its last one."""

    def __init__(self, make: Callable[[], _T], end: Callable[[_T], Awaitable[None]]) -> None:
        self._make = make
        self._end = end
        self._client: _T | None = None
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Future[Any]] = set()
        self.is_open = False

    @property
    def client(self) -> _T:
        """While it is kept. No name may hold it: the traceback of an error would, too, and it would not end."""
        if self._client is None:
            raise Closed("use Kafka: it is not open")
        return self._client

    @contextmanager
    def kept(self) -> Iterator[None]:
        """It is there, and is not ended meanwhile."""
        if not self.is_open:
            raise Closed("use Kafka: it is not open")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._client is None:
            self._client = self._make()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self.is_open:
                self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._retire)

    async def ask(self, function: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """`function(client, *arguments)`, which must not raise, in a thread. The client is there until the thread is
        done with it, even if who asked is cancelled meanwhile."""
        with ExitStack() as stack:
            stack.enter_context(self.kept())
            asking = asyncio.get_running_loop().run_in_executor(None, function, self.client, *arguments)
            self._asking.add(asking)
            until_done = stack.pop_all()

        def done(_: object) -> None:
            self._asking.discard(asking)
            until_done.close()

        asking.add_done_callback(done)
        return await asyncio.shield(asking)

    def _retire(self) -> None:
        client, self._client, self._timer = self._client, None, None
        if client is not None:
            task = asyncio.get_running_loop().create_task(self._let_go(client), name="end a Kafka client")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _let_go(self, client: _T) -> None:
        await self._end(client)

    async def close(self) -> None:
        """Whoever still has it must be done with it."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._asking)
        self._retire()
        await asyncio.gather(*self._ending)
