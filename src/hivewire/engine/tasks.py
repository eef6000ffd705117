"""Tasks with an owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from hivewire.errors import Closed

log = logging.getLogger(__name__)


_MOST_CANCELS = 3


class Tasks:
    """The tasks of one object; none outlives `close`. A task that fails is logged, never lost silently."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed = False

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        if self.closed:
            coroutine.close()
            raise Closed(f"{name}: the protocol was closed")
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and not isinstance(task.exception(), Closed | None):
            log.error("task failed", extra={"task": task.get_name()}, exc_info=task.exception())

    async def close(self) -> None:
        """Cancel all and wait for their end; a task that swallows the cancel is cancelled again."""
        self.closed = True
        own = asyncio.current_task()
        for _ in range(_MOST_CANCELS):
            waiting = [task for task in self._tasks if task is not own]
            if not waiting:
                return
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting, timeout=1.0)
        for task in self._tasks:
            log.error("task does not end when it is cancelled", extra={"task": task.get_name()})
