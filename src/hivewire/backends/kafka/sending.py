"""Storing records: one producer, reports in bursts, and nothing produced twice while its outcome is unknown."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from hivewire.backends.kafka.clients import problem
from hivewire.backends.kafka.packing import Headers
from hivewire.errors import BackendError, Closed, ConnectionLost, QueueFull
from hivewire.rules.gate import Gate

_POLL_S: Final = 0.1
_UNKNOWN_AFTER_S: Final = 1.0
"""So long a caller waits for a report before it is told that the outcome is unknown."""
_HOLD_S: Final = 0.002
"""So long nothing is held back for the sake of larger requests."""
_KEEP_S: Final = 120.0

Place = tuple[str, int]
Name = tuple[str, str, int]
"""Topic, id and replay number: what makes a second produce the same one."""


class Parcel:
    """Records that one call stores. `problems` by running number."""

    __slots__ = ("done", "due_at", "left", "problems")

    def __init__(self, size: int, done: asyncio.Future[None], due_at: float) -> None:
        self.left = size
        self.done = done
        self.due_at = due_at
        self.problems: dict[int, Exception] = {}

    def told(self, item: Item, error: BackendError | None) -> bool:
        """What became of one of them; whether it was the last."""
        if error is not None:
            self.problems[item.number] = error
        return self.stored(1)

    def stored(self, count: int) -> bool:
        """So many of them are; whether no other is left."""
        self.left -= count
        if self.left:
            return False
        if not self.done.done():
            self.done.set_result(None)
        return True

    def closed(self) -> None:
        self.problems.setdefault(0, Closed("send: the store was closed"))
        if not self.done.done():
            self.done.set_result(None)


class Single:
    """A call that stores one record: `done` is what became of it."""

    __slots__ = ("done", "due_at")

    def __init__(self, done: asyncio.Future[BackendError | None], due_at: float) -> None:
        self.done = done
        self.due_at = due_at

    def told(self, item: Item, error: BackendError | None) -> bool:
        if not self.done.done():
            self.done.set_result(error)
        return True

    def stored(self, count: int) -> bool:
        if not self.done.done():
            self.done.set_result(None)
        return True

    def closed(self) -> None:
        if not self.done.done():
            self.done.set_exception(Closed("send: the store was closed"))


class Item(msgspec.Struct, eq=False, gc=False):
    """One record on its way. The client calls it when the record is stored or not. What it points to lets go of it
    when it is done."""

    topic: str
    id: str | None
    """None: of what is never repeated."""
    replay: int
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    parcel: Parcel | Single | None = None
    number: int = 0
    offset: int = -1
    is_done: bool = False
    error: KafkaError | None = None
    gate: Partition | None = None

    @property
    def name(self) -> Name | None:
        return None if self.id is None else (self.topic, self.id, self.replay)

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        """On the thread of reports."""
        self.error = error
        offset = message.offset()
        if offset is not None:
            self.offset = offset
        gate = self.gate
        assert gate is not None
        gate.reported.append(self)


class Partition(Gate[Item]):
    """Its items report to `reported`."""

    __slots__ = ("reported",)

    def __init__(self, reported: deque[Item]) -> None:
        super().__init__()
        self.reported = reported


class Sending:
    """The producer of this process. Called on the event loop."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(options)
        self._is_idempotent = bool(options.get("enable.idempotence"))
        self.reported: deque[Item] = deque()
        """Whose reports have come, on their way from the thread to the loop."""
        self._is_woken = False
        self._gates: dict[Place, Partition] = {}
        self._ready: dict[Partition, None] = {}
        """Those that hold something which may leave."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_flushing = False
        """`_flush` will be called as soon as the loop comes to it."""
        self._open: dict[Parcel | Single, Sequence[Item]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._late: dict[Name | None, tuple[Item, float]] = {}
        """Records whose caller was told that their outcome is unknown, and since when."""
        self._under_way = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hivewire-kafka-reports", daemon=True)
        self._thread.start()

    async def store(self, batch: Sequence[Item], patience_s: float) -> Parcel:
        """Returns when each is stored or has a problem."""
        parcel = self.post(batch, patience_s)
        if parcel.left:
            await parcel.done
        return parcel

    def post(self, batch: Sequence[Item], patience_s: float = _UNKNOWN_AFTER_S) -> Parcel:
        """Put them on their way, in this order; `done` when each is stored or has a problem, or when the patience
        is over: then the outcome is unknown."""
        if self._ended:
            raise Closed("send: the store was closed")
        parcel = Parcel(len(batch), self._loop.create_future(), self._loop.time() + patience_s)
        items = self._under_way_already(batch) if self._late else batch
        for number, item in enumerate(items):
            item.parcel, item.number = parcel, number
        new = batch if items is batch else [item for item, ours in zip(items, batch, strict=True) if item is ours]
        self._hold(new)
        for item in items if len(new) < len(items) else ():
            if item.is_done:
                self._settle(item)
        if parcel.left:
            self._open[parcel] = items
            if self._sweep is None or self._sweep.when() > parcel.due_at:
                self._arm(parcel.due_at)
        return parcel

    def _under_way_already(self, batch: Sequence[Item]) -> Sequence[Item]:
        """In place of those that are on their way, or came there meanwhile, what was posted then."""
        return [self._late[item.name][0] if item.name in self._late else item for item in batch]

    def post_one(self, item: Item) -> asyncio.Future[BackendError | None] | None:
        """`post` of a single record. None: it may be on its way already."""
        if self._ended or (self._late and item.name in self._late):
            return None
        due_at = self._loop.time() + _UNKNOWN_AFTER_S
        single = item.parcel = Single(self._loop.create_future(), due_at)
        self._hold((item,))
        self._open[single] = (item,)
        if self._sweep is None or self._sweep.when() > due_at:
            self._arm(due_at)
        return single.done

    def _hold(self, items: Sequence[Item]) -> None:
        gates, ready = self._gates, self._ready
        for item in items:
            place = item.topic, item.partition
            gate = gates.get(place)
            if gate is None:
                gate = gates[place] = Partition(self.reported)
            item.gate = gate
            gate.held.append(item)
            if not gate.out:
                ready[gate] = None
            elif self._timer is None and gate.grows_old:
                self._timer = self._loop.call_later(_HOLD_S, self._held_long)
        self._under_way += len(items)
        if ready and not self._is_flushing:
            self._flush_soon()

    def _flush_soon(self) -> None:
        """With all that others send before the loop goes on: a burst is one request."""
        self._is_flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        ready, self._ready = self._ready, {}
        for gate in ready if not self._ended else ():
            self._produce(gate.take())

    def _held_long(self) -> None:
        self._timer = None
        for gate in self._gates.values():
            if gate.grows_old:
                self._produce(gate.take(at_once=True))

    def _produce(self, items: Sequence[Item]) -> None:
        """Hand them to the client, which sends them at once."""
        produce = self._producer.produce
        for number, item in enumerate(items):
            error: BackendError
            try:
                produce(item.topic, item.value, item.key, item.partition, item, headers=item.headers)
                continue
            except BufferError:
                error = QueueFull(f"send to {item.topic}: too much is on its way to the brokers")
            except KafkaException as refusal:
                error = problem(f"send to {item.topic}", refusal)
            if error.retryable:  # nothing overtakes it
                for behind in items[number:]:
                    self._end(behind, error)
                return
            self._end(item, error)

    def shout(self, topic: str, partition: int, key: bytes, value: bytes, heard: Callable[[bool], None]) -> bool:
        """From any thread, without waiting: `heard` is told, on another thread, whether it was stored. False: it
        is not on its way."""
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=lambda error, _: heard(error is None))
        except (BufferError, KafkaException):
            return False
        return True

    # -- reports

    def _run(self) -> None:
        """One wake of the loop for all that a poll brings."""
        while not self._ended:
            self._producer.poll(_POLL_S)
            if self.reported and not self._is_woken and not self._loop.is_closed():
                self._is_woken = True
                self._loop.call_soon_threadsafe(self._take_reports)

    def _take_reports(self) -> None:
        """A success without an offset is none: brokers call a record a duplicate that they do not have, when a later
        one of a producer that is new to them came first. Who sends it again gets it there, and it is handled once."""
        self._is_woken = False
        reported, late = self.reported, self._late
        gate: Partition | None = None
        parcel: Parcel | Single | None = None
        of_gate = of_parcel = 0  # reports of one partition, and of one call, come in runs
        while reported:
            item = reported.popleft()
            if item.error is not None or (item.offset < 0 and self._is_idempotent):
                self._stored(gate, of_gate)  # what was stored before has not been stored since
                gate = None
                self._end(item, _refusal(item))
                continue
            item.is_done = True
            if item.gate is gate:
                of_gate += 1
            else:
                self._stored(gate, of_gate)
                gate, of_gate = item.gate, 1
            if item.parcel is not parcel:
                self._told(parcel, of_parcel)
                parcel, of_parcel = item.parcel, 0
            of_parcel += 1
            if parcel is not None:
                item.parcel = None
                if late:
                    late.pop(item.name, None)
        self._stored(gate, of_gate)
        self._told(parcel, of_parcel)
        if self._ready and not self._is_flushing:
            self._flush_soon()

    def _stored(self, gate: Partition | None, count: int) -> None:
        if gate is not None:
            self._under_way -= count
            if gate.stored(count):
                self._ready[gate] = None

    def _told(self, parcel: Parcel | Single | None, count: int) -> None:
        if parcel is not None and parcel.stored(count):
            self._open.pop(parcel, None)

    def _end(self, item: Item, error: BackendError) -> None:
        """It is not there. What may be sent again is not overtaken by what stands behind it."""
        gate = item.gate
        assert gate is not None
        if error.retryable:
            for lost in (item, *gate.failed()):
                self._over(lost, error)
            return
        if gate.refused():
            self._ready[gate] = None
            if not self._is_flushing:
                self._flush_soon()
        self._over(item, error)

    def _over(self, item: Item, error: BackendError) -> None:
        self._under_way -= 1
        item.is_done = True
        self._late.pop(item.name, None)  # produce it anew
        if item.parcel is not None:
            self._settle(item, error)

    def _settle(self, item: Item, error: BackendError | None = None) -> None:
        parcel, item.parcel = item.parcel, None
        assert parcel is not None
        if error is None:
            self._late.pop(item.name, None)
        if parcel.told(item, error):
            self._open.pop(parcel, None)

    def _swept(self) -> None:
        """Tell who waits too long; what was sent stays on its way."""
        now = self._loop.time()
        self._sweep = None
        for parcel, items in list(self._open.items()):
            if parcel.due_at > now:
                continue
            for item in items:
                if item.parcel is parcel:
                    if item.name is not None:
                        self._late[item.name] = (item, now)
                    self._settle(item, ConnectionLost("send: the brokers have not confirmed it yet; repeat it"))
        for name, (item, since) in list(self._late.items()):
            if item.is_done and now - since > _KEEP_S:
                del self._late[name]
        if self._open:
            self._arm(min(parcel.due_at for parcel in self._open))

    def _arm(self, at: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = self._loop.call_at(at, self._swept)

    async def close(self, within_s: float = 2.0) -> None:
        """What is on its way may arrive."""
        if self._ended:
            return
        self._flush()
        self._held_long()
        if self._under_way:
            await asyncio.to_thread(self._producer.flush, within_s)
        self._ended = True
        for timer in (self._timer, self._sweep):
            if timer is not None:
                timer.cancel()
        await asyncio.to_thread(self._thread.join)
        self._take_reports()
        self._producer.purge()
        for parcel in list(self._open):
            parcel.closed()
        self._open.clear()
        producer = self._producer
        del self._producer
        await asyncio.to_thread(_let_go, producer)


def _refusal(item: Item) -> BackendError:
    if item.error is not None:
        return problem("send", item.error)
    return ConnectionLost("send: the brokers took it for one that they have; it is sent again")


def _let_go(producer: Producer) -> None:
    """Its end waits for its threads, which must not be the event loop's doing."""
    producer.poll(0)
    del producer
