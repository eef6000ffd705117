"""The Kafka backend: a topic for each agent, owned by partitions in one consumer group."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence, Set
from typing import Final
from uuid import uuid4
from zlib import crc32

from hivewire.backend import (
    Append,
    Backend,
    BackendHealth,
    Consumer,
    DeadRecord,
    Depth,
    Duplicate,
    Entry,
    Features,
    Member,
    Ownership,
    QueueSpec,
    Room,
    Waiting,
)
from hivewire.backends.kafka import depth as depths
from hivewire.backends.kafka import looking, warned
from hivewire.backends.kafka.admin import Admin
from hivewire.backends.kafka.appending import Appending
from hivewire.backends.kafka.catalogue import Catalogue, Follower
from hivewire.backends.kafka.channels import Channels
from hivewire.backends.kafka.claims import Claims
from hivewire.backends.kafka.clients import Options
from hivewire.backends.kafka.competing import CompetingConsumer
from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.delays import Delays
from hivewire.backends.kafka.feed import Feed
from hivewire.backends.kafka.lent import GivenUp, LentConsumer, is_lent
from hivewire.backends.kafka.letters import Letters
from hivewire.backends.kafka.mailbox import Mailbox, Shared
from hivewire.backends.kafka.member import Member as GroupMember
from hivewire.backends.kafka.names import REPLY_PREFIX, Names
from hivewire.backends.kafka.pulse import Pulse
from hivewire.backends.kafka.reader import Reader
from hivewire.backends.kafka.sending import Item, Sending
from hivewire.backends.kafka.space import Space
from hivewire.backends.kafka.tail import Tail
from hivewire.backends.kafka.together import all_of
from hivewire.backends.kafka.topics import Topics
from hivewire.errors import BackendError, Closed
from hivewire.forks import forks
from hivewire.record import Record
from hivewire.rules.pool import Pool
from hivewire.rules.store_clock import StoreClock
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_COMMIT_EACH_S: Final = 0.02
"""A commit holds up the thread that reads, by a round trip."""
_FOLLOW_WAIT_S: Final = 0.05
_READ_WAIT_S: Final = 0.01
_JOIN_S: Final = 8.0
_OPEN_S: Final = 10.0
_CONSUMER_SESSION_S: Final = 45.0
"""Of `group.protocol=consumer`, as brokers have it unless told otherwise, and never less unless they allow it."""


class KafkaBackend(Backend):
    """Not to be used from another thread than its event loop's, nor after a fork."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.features = Features(
            durability="volatile" if settings.kafka.require_acks == "0" else "process",
            store_lanes=False,
            store_competes=True,
            per_record_ack=False,
            settle_pace_s=_COMMIT_EACH_S,
            store_dedup=False,
            remembers_settled=False,
            finds_expired=False,
            lends_competing=settings.kafka.share_groups,
        )
        self.names = Names(settings.kafka.topic_prefix)
        self.client_id = settings.worker_name or f"hivewire-{uuid4().hex[:12]}"
        self.options = Options(settings, self.client_id)
        self.admin = Admin(self.options, self.names.catalogue)
        self.topics = Topics(self)
        self.followers: list[Follower] = []
        self.catalogue = Catalogue(self)
        self.letters = Letters(self)
        self.delays = Delays(self)
        self.claims = Claims(self)
        self.given_up = GivenUp(self)
        self.feeds: dict[str, Feed] = {}
        self.pulse = Pulse()
        self.appending = Appending(self)
        self._forks = forks.count
        self._tail: GroupMember | None = None
        self._apart: Tail | None = None
        self.reader = Reader(self.options.reader(_READ_WAIT_S))
        self._sending: Sending | None = None
        self._sure: Sending | None = None
        """For what must not be lost, whatever `require_acks` says of messages: catalogue, claims, dead letters."""
        self._clock = StoreClock()
        self.consumers: set[KafkaConsumer | CompetingConsumer | LentConsumer] = set()
        self._members: list[GroupMember] = []
        self._replies = Shared(self, "to")
        self._channels = Channels(self)
        self._space = Space(self)
        self._closing = asyncio.Lock()
        self._abandoned = False
        self._is_ending = False
        """What is made from now on would be left behind."""

    # -- life

    async def open(self) -> None:
        if self._sending is not None:
            return
        self._forks = forks.count
        self._is_ending = False
        try:
            self.admin.clients.is_open = self.reader.clients.is_open = True
            await self.admin.ping(_OPEN_S)
            self._tail = GroupMember(self.options.member(), self._session_s())
            self._members.append(self._tail)
            self._sending = Sending(self.options.producer(is_safe=self.options.is_safe))
            self._sure = self._sending if self.options.is_safe else Sending(self.options.producer(is_safe=True))
            await self.catalogue.open()
        except BaseException:
            await self._let_go()
            raise

    def check_usable(self) -> None:
        if self._forks != forks.count:
            raise BackendError("use Kafka: it was opened before a fork; connect anew in the child process")
        if self._sending is None or self._abandoned or self._is_ending:
            raise Closed("use Kafka: it is not open")

    @property
    def tail(self) -> Tail:
        """The group's client, which follows other partitions, too."""
        if self._tail is None:
            raise Closed("use Kafka: it is not open")
        return self._tail

    @property
    def apart(self) -> Tail:
        """For what must be read while the group takes partitions away: made when the claims are first used."""
        self.check_usable()
        if self._apart is None:
            self._apart = Tail(self.options.reader(_FOLLOW_WAIT_S), "claims")
        return self._apart

    @property
    def sending(self) -> Sending:
        if self._sending is None:
            raise Closed("use Kafka: it is not open")
        return self._sending

    @property
    def sure(self) -> Sending:
        if self._sure is None:
            raise Closed("use Kafka: it is not open")
        return self._sure

    def now(self) -> float:
        return self._clock.at(time.time())

    def not_before(self, at: float) -> None:
        """What the brokers have stamped is never in the future."""
        self._clock.not_before(at, time.time())

    async def health(self) -> BackendHealth:
        durability = self.features.durability
        try:
            self.check_usable()
            brokers = await self.admin.ping()
        except (BackendError, Closed) as error:
            return BackendHealth(ok=False, durability=durability, detail=str(error))
        warnings = list(warned.warnings(self.settings, topics=self.topics.count(), brokers=brokers))
        detail = f"{','.join(self.settings.kafka.brokers)}: {brokers} broker{'s' if brokers != 1 else ''}"
        return BackendHealth(ok=True, durability=durability, detail=detail, warnings=warnings)

    def paused(self) -> int:
        return sum(consumer.paused() for consumer in self.consumers if isinstance(consumer, KafkaConsumer))

    def abandon(self) -> None:
        self._abandoned = True
        self.reader.clients.is_open = False
        for consumer in self.consumers:
            consumer.abandon()
        for member in self._members:
            member.abandon()

    async def close(self) -> None:
        if self._forks != forks.count:
            return
        async with self._closing:
            if self._sending is None:
                return
            # At the same time: while a broker is away each of them takes some seconds.
            ends = [consumer.stop() if self._abandoned else consumer.close() for consumer in self.consumers]
            await all_of(ends)
            self.consumers.clear()
            await self._let_go()

    async def _let_go(self) -> None:
        self._is_ending = True
        await all_of([member.close() for member in self._members])
        self._members.clear()
        await asyncio.to_thread(self.pulse.end)
        await self.claims.close()
        for sending in {self._sending, self._sure}:
            if sending is not None:
                await sending.close()
        if self._apart is not None:
            await self._apart.close()
        for follower in self.followers:
            follower.end()
        self.followers.clear()
        await self.reader.clients.close()
        await self.admin.clients.close()
        self._sending = self._sure = self._tail = self._apart = None

    # -- storing

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        self.check_usable()
        return await self.appending.append(batch)

    def append_soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
        self.check_usable()
        return self.appending.soon(queue, record, room)

    async def store_all(self, items: Sequence[Item]) -> None:
        """All, or the first problem."""
        if items:
            parcel = await self.sure.store(items, self.settings.kafka.write_timeout_s)
            for error in parcel.problems.values():
                raise error

    async def store_one(self, item: Item) -> int:
        """Its offset."""
        await self.store_all((item,))
        return item.offset

    # -- queues

    async def declare(self, spec: QueueSpec) -> QueueSpec:
        self.check_usable()
        return await self.topics.declare(spec)

    async def queues(self) -> Sequence[QueueSpec]:
        self.check_usable()
        return await self.topics.all()

    async def drop_queue(self, queue: str) -> None:
        """Replies share one topic: what nobody took is gone an hour later."""
        self._replies.forget(queue)
        if not queue.startswith(REPLY_PREFIX) and await self.topics.look_up(queue) is not None:
            await self._space.empty(queue)
        await self.topics.forget(queue)

    async def depth(self, queue: str) -> Depth:
        self.check_usable()
        return await depths.depth(self, queue)

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        self.check_usable()
        return await looking.peek(self, queue, limit, after, delayed_only)

    async def find_delayed(self, queue: str, ids: Set[str]) -> Sequence[Waiting]:
        self.check_usable()
        return await looking.find_delayed(self, queue, ids)

    async def withdraw(self, queue: str, cursors: Sequence[str]) -> Sequence[str]:
        self.check_usable()
        return await looking.withdraw(self, queue, cursors)

    # -- consuming

    async def consume(self, queue: str, member: Member, owner: Ownership) -> Consumer:
        self.check_usable()
        if queue.startswith(REPLY_PREFIX):
            partitions = await self.topics.ensure(queue)
            mailbox = Mailbox(self, queue, self._replies, owner)
            await mailbox.begin(self.names.replies, self.reply_partition(queue, partitions))
            return mailbox
        spec = await self.topics.declare(QueueSpec(name=queue))
        self.check_usable()  # it may have been closed meanwhile
        if self.features.leases_lanes(queue, competing=spec.mode == "competing"):
            return await self._compete(queue, owner)
        topic = self.names.topic(queue)
        place = next((one for one in self._members if topic not in one.seats), None)
        if place is None:
            place = GroupMember(self.options.member(), self._session_s())
            self._members.append(place)
        consumer = KafkaConsumer(self, queue, place, owner)
        self.consumers.add(consumer)
        place.join(topic, consumer)
        if not queue.startswith("~"):
            try:
                await consumer.joined(_JOIN_S)
            except BaseException:
                await consumer.close()
                raise
        return consumer

    def _session_s(self) -> float:
        """So long may this process stand still before others have its partitions."""
        return _CONSUMER_SESSION_S if self.settings.kafka.group_protocol == "consumer" else self.settings.lease_s

    async def _compete(self, queue: str, owner: Ownership) -> Consumer:
        consumer: CompetingConsumer | LentConsumer
        if await is_lent(self, queue):
            consumer = LentConsumer(self, queue, owner)
        else:
            consumer = CompetingConsumer(self, queue, owner)
        self.consumers.add(consumer)
        try:
            await consumer.open()
        except BaseException:
            await consumer.close()
            raise
        return consumer

    def feed(self, queue: str, pool: Pool) -> Feed:
        """One for all consumers of the queue in this process."""
        found = self.feeds.get(queue)
        if found is None:
            found = self.feeds[queue] = Feed(self, queue, pool)
        return found

    def discard(self, consumer: CompetingConsumer | LentConsumer) -> None:
        self.consumers.discard(consumer)

    @staticmethod
    def reply_partition(queue: str, partitions: int) -> int:
        return crc32(queue.encode()) % partitions

    async def cleanup(self, older_than_s: float | None) -> int:
        self.check_usable()
        await self._space.give_back(older_than_s or 0.0)
        return 0

    async def forget(self, consumer: KafkaConsumer) -> None:
        """It was closed; a second client of the group goes with its last queue."""
        self.consumers.discard(consumer)
        member = consumer.member
        if not member.seats and member is not self._tail and member in self._members:
            self._members.remove(member)
            await member.close()

    # -- dead letters

    async def dead(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        self.check_usable()
        return await self.letters.listed(queue, limit, after)

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        self.check_usable()
        return await self.letters.revive(queue, ids)

    async def purge_dead(self, queue: str | None, ids: Sequence[str] | None, older_than_s: float | None) -> int:
        self.check_usable()
        before = None if older_than_s is None else self.now() - older_than_s
        return await self.letters.purge(queue, ids, before)

    # -- catalogue and notes

    async def get(self, key: str) -> Entry:
        self.check_usable()
        return await self.catalogue.get(key)

    async def put(self, key: str, value: bytes, version: int, *, ttl_s: float | None = None) -> Entry | None:
        self.check_usable()
        return await self.catalogue.put(key, value, version, ttl_s)

    async def scan(self, prefix: str) -> Mapping[str, Entry]:
        self.check_usable()
        return await self.catalogue.scan(prefix)

    # -- volatile channels

    async def publish(self, channel: str, body: bytes) -> None:
        self.check_usable()
        await self._channels.publish(channel, body)

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        self.check_usable()
        return await self._channels.listen(channel, wait_s)
