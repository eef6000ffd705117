"""Who receives in this process: one inbox for `receive` of an agent, and one for each `serve`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from typing import Final

from hivewire.backend import Mode
from hivewire.engine.admission import Types
from hivewire.engine.core import Core
from hivewire.engine.crew import Crew
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.groups import Groups
from hivewire.engine.inbox import Inbox
from hivewire.engine.pull import Puller
from hivewire.engine.subscriptions import Subscriptions
from hivewire.engine.volatile import Volatile
from hivewire.errors import BackendError, DeliveryError

log = logging.getLogger(__name__)

_MOST_SUBSCRIBING: Final = 200
_NOWHERE: Final = Context()
"""Of callbacks that look at no context variable: without it each would have a copy of its own."""


class Consumers:
    """Makes inboxes, and ends them all."""

    def __init__(self, core: Core, subscriptions: Subscriptions, groups: Groups, volatile: Volatile) -> None:
        self._core = core
        self._subscriptions = subscriptions
        self.groups = groups
        self.volatile = volatile
        self._pullers: dict[str, Puller] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        # In the order they were made, as dicts are: runs of a seed must not differ.
        self._inboxes: dict[Inbox, None] = {}
        self._stops: dict[asyncio.Future[None], None] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        """Ends of `serve`."""
        self._none_serves = asyncio.Event()
        self._none_serves.set()
        self._closed = False
        self._few = asyncio.Semaphore(_MOST_SUBSCRIBING)
        """Thousands of agents that start at once: what each needs on its way to the store would stay with the process.
        Held only while the store is asked, never while another agent is waited for."""

    async def puller(self, agent: str) -> Puller:
        puller = self._pullers.get(agent)
        if puller is None:
            # One agent does not wait for another: to join a group takes a broker some time.
            async with self._opening.setdefault(agent, asyncio.Lock()):
                puller = self._pullers.get(agent)
                if puller is None:
                    puller = self._pullers[agent] = Puller(await self.inbox(agent), self.retire)
        return puller

    async def inbox(self, agent: str) -> Inbox:
        spec = await self._subscriptions.declare(self._core.spec(agent))
        if spec.mode is None:  # who reads a queue that nobody subscribed decides it
            spec = await self._core.backend.declare(self._core.spec(agent, "ordered"))
        types = _Types(self, self._subscriptions, agent)
        inbox = types.inbox = Inbox(self._core, agent, types, competing=spec.mode == "competing")
        self._inboxes[inbox] = None
        try:
            await inbox.start()
            await self._join_groups(agent, inbox)
        except BaseException:
            self._inboxes.pop(inbox, None)
            self.volatile.leave(inbox)
            await inbox.close()
            raise
        return inbox

    async def subscribe(self, agent: str, types: Sequence[str], groups: Sequence[str], mode: Mode) -> None:
        async with self._few:
            await self._subscriptions.declare(self._core.spec(agent, mode))
            await self._subscriptions.add(agent, types, groups)
        for group in groups:
            await self.groups.announce(group, agent, joined=True)
        for inbox in tuple(self._inboxes):
            if inbox.queue == agent:
                await self._join_groups(agent, inbox)

    async def unsubscribe(self, agent: str, types: Sequence[str], groups: Sequence[str]) -> None:
        everything = not types and not groups
        leaving = (await self._subscriptions.fresh(agent)).groups if everything else groups
        await self._subscriptions.remove(agent, types, leaving, everything=everything)
        for group in leaving:
            await self.groups.announce(group, agent, joined=False)

    async def forget(self, agent: str) -> None:
        """The agent, its subscriptions and its queue. Raises `DeliveryError` while somebody receives."""
        await self._leave(agent)
        for group in (await self._subscriptions.fresh(agent)).groups:
            await self.groups.announce(group, agent, joined=False)
        await self._subscriptions.forget(agent)
        backend, claims = self._core.backend, self._core.claims
        contents = set() if claims is None else await claims.of_queue(backend, agent)
        await backend.drop_queue(agent)
        if claims is not None:
            claims.dropped(contents)

    async def recheck(self, agent: str, inbox: Inbox, type: str) -> bool:
        """As the store says now."""
        accepted = await self._subscriptions.accepts_fresh(agent, type)
        await self._join_groups(agent, inbox)
        return accepted

    async def _join_groups(self, agent: str, inbox: Inbox) -> None:
        """Its groups may have been joined by another process, or in an earlier life."""
        for group in (await self._subscriptions.agent(agent)).groups:
            await self.groups.ensure(group)
            await self.volatile.join(group, inbox)

    def handed_out(self, message_id: str) -> EngineDelivery | None:
        """The delivery of a message that `receive` has handed out in this process."""
        for puller in self._pullers.values():
            for delivery in puller.inbox.handed.open.values():
                if delivery.message.id == message_id:
                    return delivery
        return None

    async def serve(self, crew: Crew, stop: asyncio.Future[object] | None, drain_s: float) -> None:
        """Run the crew until `stop`, `close` or a cancel; then its inbox is closed."""
        ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stops[ending] = None
        self._none_serves.clear()
        if self._closed:  # it began while this one was still connecting
            _resolve(ending)
        if stop is not None:
            stop.add_done_callback(_Ending(ending), context=_NOWHERE)
        try:
            crew.begin(ending)
            await ending
            crew.check()
        except asyncio.CancelledError:
            drain_s = 0.0
            raise
        finally:
            await self._until_left(crew, ending, drain_s)

    async def _until_left(self, crew: Crew, ending: asyncio.Future[None], drain_s: float) -> None:
        """Leaving is a task of its own: cancelled in the middle of it, `serve` would keep what it holds from others
        until the protocol is closed."""
        leaving = asyncio.create_task(self._leave_off(crew, ending, drain_s), name=f"leave {crew.inbox.queue}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        try:
            await asyncio.shield(leaving)
        except asyncio.CancelledError:
            if not leaving.done():
                await crew.drain(0.0)
                await asyncio.shield(leaving)
            raise

    async def _leave_off(self, crew: Crew, ending: asyncio.Future[None], drain_s: float) -> None:
        inbox = crew.inbox
        try:
            await crew.drain(drain_s)
            await inbox.close()
        except BackendError as error:
            log.warning("left without the store; the lease runs out", extra={"queue": inbox.queue, "error": str(error)})
        finally:
            self.volatile.leave(inbox)
            self._inboxes.pop(inbox, None)
            self._stops.pop(ending, None)
            if not self._stops:
                self._none_serves.set()

    async def close(self, drain_s: float) -> None:
        """Stop all; each `serve` drains by its own time or this one, whichever is shorter."""
        self._closed = True
        for ending in tuple(self._stops):
            _resolve(ending)
        try:
            async with asyncio.timeout(drain_s + 6.0):
                await self._none_serves.wait()
        except TimeoutError:
            pass  # their tasks are cancelled with all others
        self._core.takes_no_more = True
        # At the same time: while a store is away each of them takes some seconds.
        await asyncio.gather(*(puller.end() for puller in self._pullers.values()))
        left = await asyncio.gather(*(_leave(inbox) for inbox in self._inboxes), return_exceptions=True)
        self._inboxes.clear()
        for problem in left:
            if problem is not None:
                raise problem

    async def retire(self, puller: Puller) -> None:
        """Nobody has received from it for long: its shards go to others."""
        agent = puller.inbox.queue
        if self._pullers.get(agent) is puller and not puller.is_used:
            del self._pullers[agent]
            self._inboxes.pop(puller.inbox, None)
            self.volatile.leave(puller.inbox)
            try:
                await puller.inbox.close()
            except BackendError as error:
                log.warning("left without the store; the lease runs out", extra={"queue": agent, "error": str(error)})

    async def _leave(self, agent: str) -> None:
        """Stop receiving for it."""
        puller = self._pullers.get(agent)
        if puller is not None and not puller.is_used:
            puller.stop()
            await self.retire(puller)
        if any(inbox.queue == agent for inbox in self._inboxes):
            raise DeliveryError(f"forget {agent}: this process is receiving for it; stop that first")

    def abandon(self) -> None:
        for inbox in self._inboxes:
            inbox.abandon()
        for puller in self._pullers.values():
            puller.stop()


class _Types(Types):
    """Which types one inbox takes. An object and no closures: there are as many as agents."""

    __slots__ = ("_agent", "_consumers", "_subscriptions", "inbox")

    def __init__(self, consumers: Consumers, subscriptions: Subscriptions, agent: str) -> None:
        self._consumers = consumers
        self._subscriptions = subscriptions
        self._agent = agent
        self.inbox: Inbox | None = None

    def accepts(self, type: str) -> bool:
        return self._subscriptions.accepts(self._agent, type)

    async def recheck(self, type: str) -> bool:
        assert self.inbox is not None
        return await self._consumers.recheck(self._agent, self.inbox, type)


class _Ending:
    """Called when somebody else's future is done."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def __call__(self, _: object) -> None:
        _resolve(self._future)


async def _leave(inbox: Inbox) -> None:
    try:
        await inbox.close()
    except BackendError as error:  # the others must be given back all the same
        log.warning("left without the store", extra={"queue": inbox.queue, "error": str(error)})


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
