"""This process's membership in the consumer group, and what it reads beside it: one client, one thread.

Invariants: every call of the client is made by its thread. A partition of the group is read only after the engine has
taken it over, and is given up only after the engine has. A commit names only partitions that are held by the
token of now; one commit is under way at a time. What is followed beside the group stays assigned: while the group
takes partitions away, any `incremental_unassign` passes for the answer to that.

The group takes notice of its own partitions alone, so others can be assigned beside them. But from the moment that it
wants partitions back until it has them, the client is given nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from hivewire.backend import Saved
from hivewire.backends.kafka import metadata
from hivewire.backends.kafka.commits import Commits, Save, commit_start
from hivewire.backends.kafka.packing import KafkaMessage
from hivewire.backends.kafka.partition import Taken
from hivewire.backends.kafka.runs import Run, parted
from hivewire.backends.kafka.tail import Place, Tail

if TYPE_CHECKING:
    from hivewire.backends.kafka.consumer import KafkaConsumer

log = logging.getLogger(__name__)

_BUSY_POLL_S: Final = 0.002
_CALM_POLL_S: Final = 0.02
_CALM_AFTER_S: Final = 0.25
_TOGETHER: Final = 1_000
_COMMITTED_S: Final = 5.0
_PULSE_S: Final = 0.25
_MARGIN_S: Final = 1.0
_LEAVE_S: Final = 7.0
_numbers = count(1)
_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Member(Tail):
    """`seats` by topic: who consumes which. One seat a topic; a second one needs another member. Without a seat it
    is in no group, and follows what it is told to."""

    def __init__(self, options: dict[str, Any], lease_s: float) -> None:
        self._lease_s = lease_s
        self.seats: dict[str, KafkaConsumer] = {}
        self.tokens: Mapping[Place, int] = {}
        """Replaced, never changed: read by the loop, written by the thread."""
        self._commits = Commits()
        self._subscribed: frozenset[str] = frozenset()
        self._left: deque[str] = deque()
        """Topics whose seat was given up; it may have another one by now."""
        self._has_name = False
        """The group knows this member. Who asks again before has got a second name, and the group waits for the first
        one, which nobody uses, until its session ends."""
        self._asked_at = 0.0
        self._asks_later = False
        self._busy_until = 0.0
        self._abandoned = False
        self._beat_at = time.clock_gettime(_clock)
        self._thaw = False
        self._gone = threading.Event()
        self._pulse: threading.Thread | None = None
        self._is_counted_by_brokers = options.get("group.protocol") == "consumer"
        super().__init__(options, "member")

    # -- on the event loop

    def join(self, topic: str, seat: KafkaConsumer) -> None:
        if self._pulse is None:
            self._beat_at = time.clock_gettime(_clock)
            self._pulse = threading.Thread(target=self._keep_time, name="hivewire-kafka-pulse", daemon=True)
            self._pulse.start()
        self.seats[topic] = seat
        self._order(self._subscribe)

    def leave(self, topic: str) -> None:
        self.seats.pop(topic, None)
        self._left.append(topic)
        self._order(self._subscribe)

    def stir(self) -> None:
        """Something is going on: commands come soon."""
        self._busy_until = time.monotonic() + _CALM_AFTER_S

    def halt(self, place: Place) -> None:
        """Read nothing more of a partition of the group."""
        self._order(lambda client: self._if_held(place, client.pause))

    def go_on(self, place: Place) -> None:
        self._order(lambda client: self._if_held(place, client.resume))

    async def begin_anew(self, place: Place, token: int) -> None:
        """Take a partition over once more, from its start, if it is held by this token: no save by it counts any more.
        When this fails, it is held as before."""

        def again(client: Consumer) -> None:
            if self.tokens.get(place) == token:
                start = commit_start(client, place)
                client.seek(start)
                self._forget([place])
                self._take(client, [start], is_new=False)

        await self.command(again, "begin with a topic that was made anew")

    def _let_go(self, client: Consumer, place: Place) -> None:
        if place not in self._sinks:
            client.pause([TopicPartition(*place)])

    def _if_held(self, place: Place, call: Callable[[list[TopicPartition]], None]) -> None:
        if place in self.tokens:
            call([TopicPartition(*place)])

    @property
    def is_frozen(self) -> bool:
        """The process stood still for so long that the session may have ended."""
        return time.clock_gettime(_clock) - self._beat_at > self._lease_s - _MARGIN_S

    async def save(self, states: Mapping[Place, tuple[int, Saved]]) -> set[Place]:
        """Commit; returns the partitions that are somebody else's."""
        if self._ended:
            return set(states)
        save = Save(states, self._loop.create_future())
        self._commits.add(save)
        self.stir()
        await save.done
        if save.error is not None:
            raise save.error
        return save.lost

    def abandon(self) -> None:
        """As if the process was killed: nothing is said to the group."""
        self._abandoned = True
        self._ended = True

    async def close(self) -> None:
        self._gone.set()
        await super().close()
        if self._pulse is not None:
            await asyncio.to_thread(self._pulse.join)

    def _assigned(self, taken: Sequence[Taken], subscribed: Set[str]) -> None:
        for one in taken:
            seat = self.seats.get(one.place[0])
            if seat is not None:
                seat.assigned(one)
        for topic in subscribed:
            seat = self.seats.get(topic)
            if seat is not None:
                seat.decided()

    def _losing(self, places: Sequence[Place], answer: queue.SimpleQueue[Mapping[Place, tuple[int, Saved]]]) -> None:
        task = self._loop.create_task(self._give_up(places), name="kafka gives partitions up")
        task.add_done_callback(lambda done: answer.put({} if done.cancelled() or done.exception() else done.result()))

    async def _give_up(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, Saved]]:
        states: dict[Place, tuple[int, Saved]] = {}
        by_topic: dict[str, set[int]] = {}
        for topic, number in places:
            by_topic.setdefault(topic, set()).add(number)
        seats = [(topic, numbers, self.seats[topic]) for topic, numbers in by_topic.items() if topic in self.seats]
        given = await asyncio.gather(*(seat.give_up(numbers) for _, numbers, seat in seats))
        for (topic, _, _), found in zip(seats, given, strict=True):
            states.update({(topic, number): state for number, state in found.items()})
        return states

    def _lost(self, tokens: Mapping[Place, int]) -> None:
        for (topic, number), token in tokens.items():
            seat = self.seats.get(topic)
            if seat is not None:
                seat.lost(number, token)

    def _fetched(self, runs: Sequence[Run]) -> None:
        for run in runs:
            seat = self.seats.get(run.place[0])
            if seat is not None:
                seat.arrived(run)

    def _saved(self, done: Sequence[Save]) -> None:
        for save in done:
            if not save.done.done():
                save.done.set_result(save.lost)

    # -- on the threads

    def _keep_time(self) -> None:
        """A thread that does nothing but see that time goes on: who was stopped owns nothing any more."""
        while not self._gone.wait(_PULSE_S):
            if self.is_frozen:
                self._thaw = True
                self._forget(list(self.tokens))
            self._beat_at = time.clock_gettime(_clock)

    def _forget(self, places: Sequence[Place]) -> None:
        gone = {place: self.tokens[place] for place in places if place in self.tokens}
        self.tokens = {place: token for place, token in self.tokens.items() if place not in gone}
        if gone:
            self._post(self._lost, gone)

    def _run(self) -> None:
        client = Consumer(self._options)
        try:
            while not self._ended:
                try:
                    self._step(client)
                except KafkaException as error:  # a broker that is away; what was to be done is said again by others
                    log.warning("the consumer goes on after: %s", str(error))
                    time.sleep(_CALM_POLL_S)
            self._commits.hurry()
            self._commit(client)
        except Exception:
            log.exception("the Kafka consumer has ended")
        finally:
            self._forget(list(self.tokens))
            try:
                if not self._abandoned:
                    self._leave(client)
            finally:
                del client
                self._post(self._saved, self._commits.refuse())

    def _leave(self, client: Consumer) -> None:
        """`close` alone says nothing to the group for a member without a partition, or for one that is being counted;
        what is asked of the latter waits until the group has decided. All others would wait for the session of the
        one who went, and their commits with them. The same if it has asked already, when its last seat was given up."""
        try:
            if not self._is_counted_by_brokers:
                if self._subscribed:
                    client.unsubscribe()
                until = time.monotonic() + min(self._lease_s + _MARGIN_S, _LEAVE_S)
                while client.memberid() and time.monotonic() < until:
                    client.poll(_BUSY_POLL_S)
        except KafkaException as error:
            log.warning("left without a word to the group: %s", str(error))
        client.close()

    def _step(self, client: Consumer) -> None:
        if self._thaw:
            self._thaw = False
            self._begin_again(client)
        while self._commands:
            self._commands.popleft()(client)
        if self._asks_later and not self._is_joining:
            self._subscribe(client)
        self._commit(client)
        is_busy = self._commits.wait or time.monotonic() < self._busy_until
        first = client.poll(_BUSY_POLL_S if is_busy else _CALM_POLL_S)
        if first is not None:
            self._hand_over([first, *client.consume(_TOGETHER, 0)])

    def _subscribe(self, client: Consumer) -> None:
        """To what has a seat now. A topic whose seat is another one begins anew, and the group is not asked."""
        self._asks_later = self._is_joining
        if self._asks_later:
            return
        topics, before = frozenset(self.seats), self._subscribed
        left = {self._left.popleft() for _ in range(len(self._left))}
        self._subscribed = topics
        if not topics and before:
            self._has_name = False
            client.unsubscribe()
        elif topics != before:
            self._asked_at = time.monotonic()
            self._meet(client, topics - before)
            client.subscribe(
                sorted(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        again = [at for at in self._given(client) if at.topic in left and at.topic in topics]
        if again:
            self._forget([(at.topic, at.partition) for at in again])
            self._take(client, again, is_new=False)

    @staticmethod
    def _meet(client: Consumer, topics: Set[str]) -> None:
        """One that the client has not met costs half a second more. Of several all are asked for in one question: each
        waits for the fetch that is under way, a tenth of a second, and nothing is read meanwhile."""
        with suppress(KafkaException):
            match tuple(topics):
                case (topic,):
                    client.list_topics(topic, timeout=_COMMITTED_S)
                case (_, *_):
                    client.list_topics(timeout=_COMMITTED_S)

    def _given(self, client: Consumer) -> list[TopicPartition]:
        """By the group."""
        return [at for at in client.assignment() if (at.topic, at.partition) not in self._reading]

    @property
    def _is_joining(self) -> bool:
        return bool(self._subscribed) and not self._has_name and time.monotonic() < self._asked_at + self._lease_s

    def _on_assign(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._has_name = True
        self._take(client, partitions, is_new=True)

    def _take(self, client: Consumer, partitions: Sequence[TopicPartition], *, is_new: bool) -> None:
        """Begin with partitions where the commit says, at first paused. With `is_new` False they are held already."""
        if not partitions:
            if is_new:
                client.incremental_assign([])
                self._post(self._assigned, (), self._subscribed)
            return
        found = self._committed(client, partitions)
        starts, taken = [], []
        for at in found:
            watermark = max(at.offset, 0)
            committed = metadata.unpack(watermark, at.metadata or "")
            is_committed = at.offset >= 0
            starts.append(TopicPartition(at.topic, at.partition, watermark))
            place = (at.topic, at.partition)
            taken.append(Taken(place, next(_numbers), watermark, committed.state, is_committed))
        if is_new:
            client.incremental_assign(starts)
        client.pause(starts)
        if not is_new:
            for start in starts:
                client.seek(start)
        self.tokens = {**self.tokens, **{one.place: one.token for one in taken}}
        self._post(self._assigned, taken, self._subscribed)

    def _begin_again(self, client: Consumer) -> None:
        """After a freeze: everything anew, if the group still counts us in. If not, the client will say so."""
        held = self._given(client)
        if not held:
            return
        found = self._committed(client, held)
        try:
            offsets = [TopicPartition(a.topic, a.partition, max(a.offset, 0), metadata=a.metadata or "") for a in found]
            client.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("stood still for too long: %s", str(error))
            return
        self._take(client, held, is_new=False)

    def _committed(self, client: Consumer, partitions: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
        asked = [TopicPartition(at.topic, at.partition) for at in partitions]
        while not self._ended:
            try:
                found: list[TopicPartition] = client.committed(asked, timeout=_COMMITTED_S)
            except KafkaException as error:
                log.warning("cannot read commits yet: %s", str(error))
                continue
            if all(at.error is None for at in found):
                return found
            time.sleep(_CALM_POLL_S)
        return asked

    def _on_revoke(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        """Waits until nothing of them runs; commits go on meanwhile."""
        places = [(at.topic, at.partition) for at in partitions]
        answer: queue.SimpleQueue[Mapping[Place, tuple[int, Saved]]] = queue.SimpleQueue()
        self._post(self._losing, [place for place in places if place in self.tokens], answer)
        while not self._ended:
            self._commit(client)
            try:
                states = answer.get(timeout=_BUSY_POLL_S)
            except queue.Empty:
                continue
            if states:
                self._commits.add(Save(states, self._loop.create_future()))
                while not self._commit(client) and not self._ended:
                    time.sleep(_BUSY_POLL_S)
            break
        self._forget(places)
        client.incremental_unassign(list(partitions))

    def _on_lost(self, client: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._has_name, self._asked_at = False, time.monotonic()
        self._forget([(at.topic, at.partition) for at in partitions])
        client.incremental_unassign(list(partitions))

    def _commit(self, client: Consumer) -> bool:
        """All that waits. False: try again in a moment."""
        while self._commits.wait:
            answered = self._commits.next(client, {} if self._thaw else self.tokens)
            if not answered:
                return False
            self._post(self._saved, answered)
        return True

    def _hand_over(self, messages: list[KafkaMessage]) -> None:
        runs, others = parted(messages, self.tokens, self._reading)
        if runs:
            self._post(self._fetched, runs)
        if others:
            super()._hand_over(others)
