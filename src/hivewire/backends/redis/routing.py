"""Many connections behind one link: those of a pool, and those to the nodes of a cluster. All of one hash tag, and
so all of one queue, goes over one of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from hivewire.backends.redis import slots
from hivewire.backends.redis.address import Address, Command, Reply
from hivewire.backends.redis.crossing import Crossing
from hivewire.backends.redis.line import Line, Where
from hivewire.backends.redis.link import ON_THE_WAY, Link
from hivewire.backends.redis.slots import Place, View
from hivewire.backends.redis.wire import ask_once
from hivewire.errors import BackendError, Closed, ConnectionLost, HivewireError
from hivewire.settings import RedisSettings

_MOST_ASKED = 6
_LEAST_APART_S = 0.1
_TURNS = 8
"""Of the loop, within which all have heard of an outcome who waited for it."""


class Node:
    """One server and our connections to it."""

    def __init__(self, place: Place, lines: Sequence[Line]) -> None:
        self.place = place
        self.lines = lines
        self.guests = 0
        """How many commands are under way to it because of slots that another node still has."""


class Router(Link):
    """Without `fixed` the servers are nodes of a cluster, and the cluster says which has what. When a slot goes to
    another node, what is under way has its outcome before anything else of that slot is sent: a later message
    never overtakes an earlier one that was refused. While its keys go there one by one: see `Crossing`."""

    def __init__(
        self, settings: RedisSettings, prepare: Sequence[Command] = (), *, fixed: Where | None = None, lanes: int = 1
    ) -> None:
        self._settings = settings
        self._prepare = prepare
        self._fixed = fixed
        self._lanes = lanes
        self.retries = settings.max_retries
        self._seeds = [(address.host, address.port) for address in Address.all_of(settings)]
        self._enter = Address.of(settings)
        self._nodes: dict[Place, Node] = {}
        self._retired: list[Line] = []
        self._known: set[Place] = set()
        """All nodes that the cluster named lately, replicas too."""
        self._owners: list[Node | None] = []
        self._shut: dict[int, int] = {}
        """Slots that are on their way to another node, with the number of the ways that they are on."""
        self._held: dict[int, int] = {}
        """Those that take no messages for a moment, in the same way."""
        self._crossing = Crossing(self)
        self._backlog: list[tuple[Sequence[Command], asyncio.Future[list[Reply]], bool, float]] = []
        self._refreshing: asyncio.Task[None] | None = None
        self._wants_refresh = False
        self._refreshed_at = 0.0
        self._closed = False
        if fixed is not None:
            self._owners = [self._node(self._seeds[0])] * slots.COUNT

    # -- asking

    def post(
        self, commands: Sequence[Command], *, firm: bool = False, beyond_s: float = 0.0
    ) -> asyncio.Future[list[Reply]]:
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(Closed(f"use {self._enter}: it is not open"))
            return future
        if not self._owners:
            self._backlog.append((commands, future, firm, beyond_s))
            self._plan_refresh()
            return future
        parts = self._parts(commands, firm=firm)
        if len(parts) == 1:
            (line,) = parts
            if line is not None:
                return line.post(commands, firm=firm, beyond_s=beyond_s)
        _Parts(future, len(commands)).post(parts, commands, firm=firm, beyond_s=beyond_s)
        return future

    def _parts(self, commands: Sequence[Command], *, firm: bool = False) -> dict[Line | None, list[int]]:
        parts: dict[Line | None, list[int]] = {}
        for number, command in enumerate(commands):
            parts.setdefault(self._line(command, firm=firm), []).append(number)
        return parts

    def apart(self, commands: Sequence[Command]) -> Sequence[Sequence[int]]:
        return list(self._parts(commands).values()) if self._owners else super().apart(commands)

    def _line(self, command: Command, *, firm: bool) -> Line | None:
        """None: its slot cannot be reached at this moment."""
        key = slots.key_of(command)
        return self._line_of(0 if key is None else slots.slot_of(key), firm=firm)

    def _line_of(self, slot: int, *, firm: bool = False) -> Line | None:
        if (self._shut and slot in self._shut) or (firm and self._held and slot in self._held):
            return None
        node = self._owners[slot]
        if node is None:
            self._plan_refresh()
            return None
        return node.lines[slot % self._lanes]

    def store(
        self, key: str, packed: bytes, channel: str = "", what: int = 0
    ) -> asyncio.Future[BackendError | None] | None:
        line = self._line_of(slots.slot_of(key), firm=True) if self._owners and not self._closed else None
        return None if line is None else line.store(key, packed, channel, what)

    def ring(self, channel: str, what: int | str) -> None:
        line = self._line_of(slots.slot_of(channel)) if self._owners else None
        if line is not None:
            line.ring(channel, what)

    async def each(self, commands: Sequence[Command]) -> list[tuple[str, list[Reply]]]:
        if not self._owners:
            await self.post((("PING",),))
        nodes = list(dict.fromkeys(node for node in self._owners if node is not None))
        answers = [node.lines[0].post(commands) for node in nodes]
        await asyncio.gather(*answers, return_exceptions=True)
        return [(node.lines[0].name, await answer) for node, answer in zip(nodes, answers, strict=True)]

    def addresses(self) -> list[Address]:
        """Every server that can be asked."""
        return [self._enter.at(*place) for place in self._known or self._seeds]

    # -- nodes

    def _node(self, place: Place) -> Node:
        node = self._nodes.get(place)
        if node is None:
            address = self._enter.at(*place)
            warm = self._settings.min_idle_conns
            node = self._nodes[place] = Node(place, [self._new_line(address, n < warm) for n in range(self._lanes)])
        return node

    def _new_line(self, address: Address, stays: bool) -> Line:
        async def where() -> Address:
            return address

        def redirect(text: str, command: Command, firm: bool) -> asyncio.Future[Reply] | None:
            return self._crossing.redirect(line, (address.host, address.port), text, command, firm)

        is_cluster = self._fixed is None
        line = Line(
            self._fixed or where,
            str(address),
            self._prepare,
            stays=stays,
            on_trouble=self._trouble if is_cluster else None,
            redirect=redirect if is_cluster else None,
        )
        line.on_return = self._returned
        if stays:
            line.connect()
        return line

    def _returned(self) -> None:
        if self.on_return is not None:
            self.on_return()

    def _trouble(self, line: Line, text: str) -> None:
        """A server refused something; without a text its connection is not there."""
        if text.startswith("MOVED"):
            node = next((node for node in self._nodes.values() if line in node.lines), None)
            moved = slots.redirected("MOVED", text, node.place) if node is not None else None
            if node is not None and moved is not None:
                slot, place = moved
                if self._owners[slot] is node:
                    self._adopt([*self._owners[:slot], self._node(place), *self._owners[slot + 1 :]])
        elif text and not text.startswith(("CLUSTERDOWN", "MASTERDOWN")):
            return
        self._plan_refresh()

    # -- which node has which slot

    def _plan_refresh(self) -> None:
        self._wants_refresh = True
        if self._refreshing is None and not self._closed and self._fixed is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh(), name=f"nodes of {self._enter}")

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._wants_refresh:
                await asyncio.sleep(max(0.0, self._refreshed_at + _LEAST_APART_S - loop.time()))
                self._wants_refresh = False
                error = await self._look_around()
                self._refreshed_at = loop.time()
                self._go_on(error)
        finally:
            self._refreshing = None
            self._go_on(Closed(f"use {self._enter}: it was closed") if self._closed else None)

    async def _look_around(self) -> HivewireError | None:
        """Ask some nodes which has what, all at once: those that do not answer hold nobody up for long."""
        places = list({*self._nodes, *self._known, *self._seeds})
        asked = random.sample(places, min(_MOST_ASKED, len(places)))
        answers = await asyncio.gather(*[self._ask(place) for place in asked])
        views: list[View] = []
        known: set[Place] = set()
        problem: HivewireError | None = None
        for place, answer in zip(asked, answers, strict=True):
            if isinstance(answer, HivewireError):
                problem = answer if problem is None or not isinstance(answer, ConnectionLost) else problem
                continue
            view, named = slots.read_view(answer, place)
            if view:
                views.append(view)
                known |= named
        if not views:
            return problem or ConnectionLost(f"{self._enter}: no node of the cluster knows where its slots are")
        self._known = known
        owners: list[Node | None] = [None] * slots.COUNT
        for first, last, place in slots.chosen(views):
            owners[first : last + 1] = [self._node(place)] * (last + 1 - first)
        self._adopt(owners)
        return None

    async def _ask(self, place: Place) -> Reply:
        try:
            return await ask_once(self._enter.at(*place), ("CLUSTER", "SLOTS"))
        except BackendError as error:
            if "cluster support disabled" in str(error) or "unknown command" in str(error):
                return BackendError(f"{error}; it is no node of a cluster: give one address, without redis.cluster")
            return error

    def _adopt(self, owners: list[Node | None]) -> None:
        """From now on; slots that change are shut until what is under way to their old node has its outcome."""
        before, self._owners = self._owners, owners
        left: dict[Node, list[int]] = {}
        for slot, (old, new) in enumerate(zip(before, owners, strict=False)):
            if old is not new and old is not None:
                left.setdefault(old, []).append(slot)
        remain = {node for node in owners if node is not None}
        for node, gone in left.items():
            if node not in remain:
                for line in node.lines:
                    line.cut("its slots are with another node")
            _add(self._shut, gone)
            _when_done([line.fence() for line in node.lines], partial(self._open, gone))
        for place, node in list(self._nodes.items()):
            if node not in remain and not node.guests:
                del self._nodes[place]
                self._retired += [line for line in node.lines if line.retire()]

    def _open(self, gone: Sequence[int]) -> None:
        _remove(self._shut, gone)
        self._returned()

    # -- slots whose keys go to another node

    def open_line(self, slot: int, *, firm: bool) -> Line | None:
        return self._line_of(slot, firm=firm)

    def visit(self, place: Place, slot: int) -> tuple[Line, Callable[[], None]]:
        node = self._node(place)
        node.guests += 1

        def leave() -> None:
            node.guests -= 1

        return node.lines[slot % self._lanes], leave

    def hold(self, slot: int, lines: Sequence[Line]) -> None:
        _add(self._held, (slot,))
        _when_done([line.fence() for line in lines], partial(_in_turns, _TURNS, partial(_remove, self._held, (slot,))))

    def _go_on(self, error: HivewireError | None) -> None:
        """What waited for the first look at the cluster."""
        backlog, self._backlog = self._backlog, []
        for commands, future, firm, beyond_s in backlog:
            if future.done():
                continue
            if self._owners:
                self.post(commands, firm=firm, beyond_s=beyond_s).add_done_callback(partial(_hand_on, future))
            else:
                future.set_exception(error or ConnectionLost(f"{self._enter}: the cluster is not known yet"))

    # -- the end

    def reached(self) -> set[tuple[str, int]]:
        return {place for node in self._nodes.values() for line in node.lines for place in line.reached()}

    def cut(self, why: str) -> None:
        for node in self._nodes.values():
            for line in node.lines:
                line.cut(why)

    async def close(self) -> None:
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for line in [*self._retired, *(line for node in self._nodes.values() for line in node.lines)]:
            await line.close()


class _Parts:
    """The answers of several connections to one batch, put in the order of its commands."""

    def __init__(self, future: asyncio.Future[list[Reply]], count: int) -> None:
        self._future = future
        self._answers: list[Reply] = [None] * count
        self._left = 1

    def post(
        self, parts: Mapping[Line | None, Sequence[int]], commands: Sequence[Command], *, firm: bool, beyond_s: float
    ) -> None:
        for line, numbers in parts.items():
            if line is None:
                self._fail(numbers, ConnectionLost(ON_THE_WAY))
                continue
            self._left += 1
            posted = line.post([commands[number] for number in numbers], firm=firm, beyond_s=beyond_s)
            posted.add_done_callback(partial(self._answered, numbers))
        self._counted()

    def _answered(self, numbers: Sequence[int], posted: asyncio.Future[list[Reply]]) -> None:
        error = posted.exception()
        if error is not None:
            self._fail(numbers, error)
        else:
            for number, answer in zip(numbers, posted.result(), strict=True):
                self._answers[number] = answer
        self._counted()

    def _fail(self, numbers: Sequence[int], error: BaseException) -> None:
        for number in numbers:
            self._answers[number] = error

    def _counted(self) -> None:
        self._left -= 1
        if not self._left and not self._future.done():
            self._future.set_result(self._answers)


def _hand_on(future: asyncio.Future[list[Reply]], done: asyncio.Future[list[Reply]]) -> None:
    error = done.exception()
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())


def _add(counts: dict[int, int], slots: Sequence[int]) -> None:
    for slot in slots:
        counts[slot] = counts.get(slot, 0) + 1


def _remove(counts: dict[int, int], slots: Sequence[int]) -> None:
    for slot in slots:
        counts[slot] -= 1
        if not counts[slot]:
            del counts[slot]


def _in_turns(turns: int, then: Callable[[], None]) -> None:
    """After so many turns of the loop."""
    if turns:
        asyncio.get_running_loop().call_soon(_in_turns, turns - 1, then)
    else:
        then()


def _when_done(fences: Sequence[asyncio.Future[list[Reply]] | None], then: Callable[[], None]) -> None:
    """A turn of the loop after all have their outcome: those who waited for what was before them have heard of it."""
    waiting = {fence for fence in fences if fence is not None}
    loop = asyncio.get_running_loop()

    def passed(fence: asyncio.Future[list[Reply]]) -> None:
        fence.exception()  # an outcome, too
        waiting.discard(fence)
        if not waiting:
            loop.call_soon(then)

    for fence in tuple(waiting):
        fence.add_done_callback(passed)
    if not waiting:
        loop.call_soon(then)
