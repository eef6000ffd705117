"""One member's part of one queue: the partitions that it owns, and what came of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Mapping, Sequence, Set
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from hivewire.backend import Consumer, Dead, Fetched, Ownership, Saved, Unfinished
from hivewire.backends.kafka.elsewhere import MovedWork
from hivewire.backends.kafka.member import Member
from hivewire.backends.kafka.metadata import FULL_BYTES
from hivewire.backends.kafka.news import News
from hivewire.backends.kafka.packing import record_of, stored_at
from hivewire.backends.kafka.partition import Held, Taken, hand_out
from hivewire.backends.kafka.runs import Run
from hivewire.backends.kafka.tail import Place
from hivewire.errors import BackendError, Closed
from hivewire.record import names
from hivewire.rules.backoff import Backoff

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.2
_LONGEST_RETRY_S: Final = 1.0
_MOST_BUFFERED: Final = 4_000
_CATCH_UP_S: Final = 1.0
_FOREVER_S: Final = 86_400.0
_GRACE_S: Final = 1.0
"""So long a partition that must move waits for handlers; those that last longer run on."""
_CLOSE_S: Final = 5.0
_FROM_START: Final = Saved(0, b"")


class KafkaConsumer(Consumer):
    """A seat of a member of the group."""

    def __init__(self, backend: KafkaBackend, queue: str, member: Member, owner: Ownership) -> None:
        self.backend = backend
        self.queue = queue
        self.topic = backend.names.topic(queue)
        self.member = member
        self._owner = owner
        self.held: dict[int, Held] = {}
        self.owned: set[int] = set()
        """Those that the engine has taken over."""
        self._news = News()
        self._settled_in = asyncio.Event()
        """The group has decided what is ours, and it was taken over."""
        self._buffered = 0
        """Records in all buffers."""
        self._is_full = False
        self._closed = False
        self._gaining: dict[asyncio.Task[None], int] = {}
        self._elsewhere = MovedWork(backend, queue, owner)
        self._mover = asyncio.get_running_loop().create_task(
            backend.delays.keep_moving(queue, self.owned), name=f"delayed messages of {queue}"
        )

    async def joined(self, within_s: float) -> None:
        """Until the group has said which partitions are ours and they are taken over, or the time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self._settled_in.wait()
        except TimeoutError:
            log.info("the group has not decided yet", extra={"queue": self.queue, "waited_s": within_s})

    # -- what the member tells

    def decided(self) -> None:
        """The group has shared out its partitions. Of those with much waiting the first ones are enough to begin with:
        the others are not read until there is room."""
        if not self._gaining and (self._is_full or all(held.reached >= 0 for held in self.held.values())):
            self._settled_in.set()

    def assigned(self, taken: Taken) -> None:
        shard = taken.place[1]
        if self._closed or self.member.tokens.get(taken.place) != taken.token:
            return
        before = self.held.get(shard)
        if before is not None:
            self._forget(before)
        held = self.held[shard] = Held(shard, taken.token, taken.watermark)
        task = asyncio.get_running_loop().create_task(self._gain(held, taken), name=f"take over {self.queue} {shard}")
        self._gaining[task] = shard
        task.add_done_callback(self._gained)

    def _gained(self, task: asyncio.Task[None]) -> None:
        self._gaining.pop(task, None)
        self.decided()
        if not task.cancelled() and task.exception() is not None:
            log.error("cannot take a partition over", extra={"queue": self.queue}, exc_info=task.exception())

    async def _gain(self, held: Held, taken: Taken) -> None:
        backoff = Backoff(_RETRY_S, _LONGEST_RETRY_S)
        while True:
            try:
                topic_id = await self.backend.admin.topic_id(self.topic)
                settled = await self._settled_lately(taken) if taken.committed else ()
                state, away = await self._elsewhere.away_from(taken, topic_id)
                break
            except BackendError as error:
                log.warning("cannot take a partition over yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(backoff.next_s())
        if self.held.get(held.shard) is not held:
            return
        held.topic_id = topic_id
        await self._owner.gained(held.shard, held.token, state, settled)
        if away:
            self._owner.expect(held.shard, away)
        held.is_ready = True
        self.owned.add(held.shard)
        if not self._is_full:
            self.member.go_on(taken.place)

    async def _settled_lately(self, taken: Taken) -> Sequence[Hashable]:
        """The lives of the newest records below the watermark."""
        settings = self.backend.settings
        window_s = max(settings.dedup_window_s, settings.idempotency_window_s)
        first = await self.backend.admin.since(taken.place, self.backend.now() - window_s)
        first = max(first, taken.watermark - settings.dedup_window_ids)
        if first >= taken.watermark:
            return ()
        end = (await self.backend.admin.ends([taken.place]))[taken.place]
        if end < taken.watermark:
            return ()  # what was committed is of a longer log: none of these was settled, as far as can be known
        stretch = range(first, taken.watermark)
        messages = await self.backend.reader.read(*taken.place, first, taken.watermark - 1, stretch)
        return [name for message in messages for name in names(record_of(message))]

    async def give_up(self, shards: Set[int], *, waits: bool = False) -> Mapping[int, tuple[int, Saved]]:
        """Returns, with what is to be committed, when nothing of them runs any more or it is known who runs it."""
        ready: dict[int, Held] = {}
        for shard in shards:
            held = self.held.get(shard)
            if held is None:
                continue
            held.is_leaving = True
            self._forget(held)
            if held.is_ready:
                ready[shard] = held
            else:
                self._drop(shard)
        states: Mapping[int, Saved] = {}
        if ready and not waits:
            states = await self._hand_over(ready)
        elif ready:
            states = await self._owner.losing(set(ready), _FOREVER_S)
        for shard, held in ready.items():
            if self.held.get(shard) is held:
                self._drop(shard)
        return {n: (ready[n].token, _FROM_START if ready[n].is_anew else saved) for n, saved in states.items()}

    async def _hand_over(self, ready: Mapping[int, Held]) -> Mapping[int, Saved]:
        """Again until the log has it: the client reads nothing meanwhile, so nobody waits for the handlers."""
        while True:
            shards = {shard for shard, held in ready.items() if self.held.get(shard) is held}
            try:
                return await self._owner.hand_over(shards, _GRACE_S) if shards else {}
            except BackendError as error:
                log.warning("cannot give a partition up yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_RETRY_S)

    def _forget(self, held: Held) -> None:
        """What was read of it."""
        self._buffered -= len(held.buffer)
        held.buffer.clear()

    def _drop(self, shard: int) -> None:
        held = self.held.pop(shard, None)
        if held is not None:
            self._forget(held)
        self._elsewhere.forget(shard)
        self.owned.discard(shard)
        for task, number in list(self._gaining.items()):
            if number == shard:
                task.cancel()

    def lost(self, shard: int, token: int) -> None:
        held = self.held.get(shard)
        if held is not None and held.token == token:
            self._drop(shard)
            if held.is_ready:
                self._owner.lost({shard})
        self._news.set()

    def arrived(self, run: Run) -> None:
        held = self.held.get(run.place[1])
        if held is None or held.token != run.token:
            return
        batch = run.batch
        if batch and int(batch[0].at) < held.next:
            self._begin_anew(held)
        if held.is_anew:
            return
        if batch and not held.is_leaving:
            held.buffer.extend(batch)
            self._buffered += len(batch)
            self.backend.not_before(batch[-1].stored_at)
            self._press()
        if run.reached >= 0:
            held.reached = run.reached
            held.next = max(held.next, run.reached)
            if not self._settled_in.is_set():
                self.decided()
        self._news.set()

    def _begin_anew(self, held: Held) -> None:
        """What was read before, or is said to be finished, comes again: the topic was deleted and made anew, or a
        commit of somebody's hand lies behind its end. What is known of the old one, or is being committed of it, must
        not pass for the new one's: the partition is taken over once more, from its start and by another token."""
        if held.is_anew:
            return
        log.warning("the topic was made anew", extra={"topic": self.topic, "partition": held.shard})
        self._forget(held)
        held.is_anew = True
        held.state_bytes = held.watermark = 0
        task = asyncio.get_running_loop().create_task(self._take_again(held), name=f"begin {self.queue} anew")
        self._gaining[task] = held.shard
        task.add_done_callback(self._gained)

    async def _take_again(self, held: Held) -> None:
        backoff = Backoff(_RETRY_S, _LONGEST_RETRY_S)
        while True:
            try:
                with suppress(Closed):
                    await self.member.begin_anew((self.topic, held.shard), held.token)
            except BackendError as error:
                log.warning("cannot begin anew yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(backoff.next_s())
            else:
                return

    async def reads(self, topic_id: str) -> None:
        """Another topic, if it was made anew."""
        for held in tuple(self.held.values()):
            if held.topic_id not in ("", topic_id):
                self._begin_anew(held)

    def _press(self) -> None:
        """Back-pressure: what nobody asks for is not read."""
        if self._buffered > _MOST_BUFFERED and not self._is_full:
            self._is_full = True
            for place in self._ready_places():
                self.member.halt(place)
            self.decided()
        elif self._is_full and self._buffered < _MOST_BUFFERED // 2:
            self._is_full = False
            for place in self._ready_places():
                self.member.go_on(place)

    def _ready_places(self) -> list[Place]:
        return [(self.topic, held.shard) for held in self.held.values() if held.is_ready and not held.is_anew]

    # -- taking

    def watermarks(self) -> dict[Place, int]:
        """Below these offsets all is finished, and committed so."""
        return {(self.topic, held.shard): held.watermark for held in self.held.values() if held.is_ready}

    async def deleted(self, before: Mapping[int, int]) -> None:
        """Of these partitions all is gone that lay before these offsets."""
        await self._elsewhere.deleted(before)

    def paused(self) -> int:
        """Partitions that are not read on: their state is near what a commit can carry."""
        return sum(held.state_bytes > FULL_BYTES for held in self.held.values())

    def holds(self, fetched: Fetched) -> bool:
        place = (self.topic, fetched.shard)
        return self.member.tokens.get(place) == fetched.token and not self.member.is_frozen

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        if wait_s <= 0 and not self._buffered:
            await self._catch_up()
        while not self._closed:
            self._news.clear()
            taken = hand_out(self.held.values(), limit, lanes, run) if self._buffered else ()
            self._buffered -= len(taken)
            left = until - loop.time()
            if taken or left <= 0:
                self._press()
                return taken
            await self._news.wait(left)
        return ()

    async def _catch_up(self) -> None:
        """What was stored just now is on its way here: who does not wait gets it all the same."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                ends = await self.backend.admin.ends(self._ready_places())
                while any(
                    (held := self.held.get(shard)) is not None and held.reached < end
                    for (_, shard), end in ends.items()
                ):
                    self._news.clear()
                    await self._news.wait(_CATCH_UP_S)
        except TimeoutError:
            return

    async def refetch(self, shard: int, at: Sequence[int | str]) -> Sequence[Fetched]:
        held = self.held.get(shard)
        if held is None or not at:
            return ()
        wanted = {int(place) for place in at}
        messages = await self.backend.reader.read(self.topic, shard, min(wanted), max(wanted), wanted)
        return [
            Fetched(shard, message.offset(), held.token, record_of(message), stored_at(message)) for message in messages
        ]

    # -- outcomes

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        raise NotImplementedError  # running marks are part of what `save` stores

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        """Dead letters. That a record is finished is said by the next `save`."""
        self.backend.check_usable()
        dead = [outcome for outcome in rest if isinstance(outcome, Dead)]
        held = [outcome for outcome in dead if self.holds(outcome.fetched)]
        if held:
            await self.backend.letters.bury(self.queue, held)
        every = [*done, *(outcome.fetched for outcome in rest)]
        return [fetched for fetched in every if not self.holds(fetched)]

    async def hold(self, batch: Sequence[Fetched]) -> None:
        await self._elsewhere.hold(batch)

    async def settle_held(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        self.backend.check_usable()
        return await self._elsewhere.settle(done, rest)

    async def save(self, shards: Mapping[int, Saved]) -> Set[int]:
        self.backend.check_usable()
        states: dict[Place, tuple[int, Saved]] = {}
        lost: set[int] = set()
        for shard, saved in shards.items():
            held = self.held.get(shard)
            if held is None:
                lost.add(shard)
            else:
                states[self.topic, shard] = (held.token, saved)
                held.state_bytes = len(saved.state)
        refused = {shard for _, shard in await self.member.save(states)} if states else set()
        for (_, shard), (token, saved) in states.items():
            held = self.held.get(shard)
            if shard in refused:
                self.lost(shard, token)
            elif held is not None and held.token == token and not held.is_anew:
                held.watermark = saved.watermark
        self._news.set()  # a partition that was full may have room
        return lost | refused

    # -- ending

    def abandon(self) -> None:
        self._closed = True
        self._mover.cancel()
        self._elsewhere.abandon()

    async def stop(self) -> None:
        self._closed = True
        self._news.set()
        self._settled_in.set()  # nobody needs to wait for the group any more
        tasks = [self._mover, *self._gaining]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._elsewhere.stop()

    async def close(self) -> None:
        if self._closed:
            return
        await self.stop()
        try:
            async with asyncio.timeout(_CLOSE_S):
                states = await self.give_up(set(self.held), waits=True)
                await self.member.save({(self.topic, shard): state for shard, state in states.items()})
        except (TimeoutError, BackendError) as error:
            why = str(error) or f"no answer within {_CLOSE_S:g} s"
            log.warning("left without the last commit", extra={"queue": self.queue, "error": why})
        self.held.clear()
        self._buffered = 0
        await self._elsewhere.close()
        self.member.leave(self.topic)
        await self.backend.forget(self)
