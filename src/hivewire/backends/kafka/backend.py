"""The Kafka backend: a topic for each agent, owned by partitions in one consumer group."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
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
from hivewire.backends.kafka import looking
from hivewire.backends.kafka.admin import Admin
from hivewire.backends.kafka.appending import Appending
from hivewire.backends.kafka.catalogue import Catalogue, Follower
from hivewire.backends.kafka.claims import Claims
from hivewire.backends.kafka.clients import Options
from hivewire.backends.kafka.competing import CompetingConsumer
from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.delays import Delays
from hivewire.backends.kafka.feed import Feed
from hivewire.backends.kafka.lent import GivenUp, LentConsumer, delivery_limit
from hivewire.backends.kafka.letters import Letters
from hivewire.backends.kafka.mailbox import Mailbox, Shared
from hivewire.backends.kafka.member import Member as GroupMember
from hivewire.backends.kafka.names import REPLY_PREFIX, Names
from hivewire.backends.kafka.packing import stored_at
from hivewire.backends.kafka.pulse import Pulse
from hivewire.backends.kafka.reader import Reader
from hivewire.backends.kafka.sending import Item, Sending
from hivewire.backends.kafka.tail import Place, Tail
from hivewire.backends.kafka.topics import Topics
from hivewire.errors import BackendError, Closed
from hivewire.record import Record
from hivewire.rules.pool import Pool
from hivewire.rules.store_clock import StoreClock
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_COMMIT_EACH_S: Final = 0.02
"""A commit holds up the thread that reads, by a round trip."""
_FOLLOW_WAIT_S: Final = 0.05
_READ_WAIT_S: Final = 0.01
_VOLATILE_PARTITIONS: Final = 4
_JOIN_S: Final = 8.0
_OPEN_S: Final = 10.0
_CHANNEL: Final = "channel"
_WAY: Final = "way/"
_MANY_TOPICS: Final = 300
_CONSUMER_SESSION_S: Final = 45.0
"""Of `group.protocol=consumer`, as brokers have it unless told otherwise, and never less unless they allow it."""


class _Forks:
    """How often this process was forked off: to ask for its id each time is dear."""

    count = 0

    def forked(self) -> None:
        self.count += 1


_forks = _Forks()
os.register_at_fork(after_in_child=_forks.forked)


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
        self._forks = _forks.count
        self._tail: GroupMember | None = None
        self._apart: Tail | None = None
        self.reader = Reader(self.options.reader(_READ_WAIT_S))
        self._sending: Sending | None = None
        self._sure: Sending | None = None
        """For what must not be lost, whatever `require_acks` says of messages: catalogue, claims, dead letters."""
        self._clock = StoreClock()
        self._consumers: set[KafkaConsumer | CompetingConsumer | LentConsumer] = set()
        self._members: list[GroupMember] = []
        self._replies = Shared(self, "to")
        self._channels = Shared(self, _CHANNEL)
        self._ages: dict[tuple[str, int], tuple[int, float]] = {}
        self._deleted: dict[Place, int] = {}
        self._closing = asyncio.Lock()
        self._abandoned = False
        self._is_ending = False
        """What is made from now on would be left behind."""

    # -- life

    async def open(self) -> None:
        if self._sending is not None:
            return
        self._forks = _forks.count
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
        if self._forks != _forks.count:
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
        warnings = self._warnings(brokers)
        detail = f"{','.join(self.settings.kafka.brokers)}: {brokers} broker{'s' if brokers != 1 else ''}"
        return BackendHealth(ok=True, durability=durability, detail=detail, warnings=warnings)

    def paused(self) -> int:
        return sum(consumer.paused() for consumer in self._consumers if isinstance(consumer, KafkaConsumer))

    def _warnings(self, brokers: int) -> list[str]:
        kafka = self.settings.kafka
        found: list[str] = []
        queues = self.topics.count()
        if queues > _MANY_TOPICS:
            found.append(
                f"{queues} topics with the prefix {kafka.topic_prefix}: Kafka is slow with many; make instances "
                "(coder/42) instead of agents, which share the topic of their name"
            )
        if brokers > 1 and kafka.replication_factor == 1:
            found.append(
                f"replication_factor=1 on {brokers} brokers: new topics have one copy, and are gone with its disk"
            )
        if not self.options.is_safe:
            lost = (
                "a message counts as sent before any broker has it"
                if kafka.require_acks == "0"
                else "a broker that fails takes confirmed messages with it"
            )
            found.append(
                f"acks={kafka.require_acks}: {lost}, and the idempotent producer is off, so a resend may change the "
                "order"
            )
        if kafka.share_groups:
            found.append(
                "share_groups is experimental: handlers of competing queues have 29 s, deliveries count as attempts "
                f"({delivery_limit(self.settings.max_attempts)} at most), and a resend may be handled twice"
            )
        if kafka.group_protocol == "consumer":
            found.append(
                "group_protocol=consumer: work of a dead process is taken over after the brokers' "
                "group.consumer.session.timeout.ms (45 s unless set), not after lease_s"
            )
        return found

    def abandon(self) -> None:
        self._abandoned = True
        self.reader.clients.is_open = False
        for consumer in self._consumers:
            consumer.abandon()
        for member in self._members:
            member.abandon()

    async def close(self) -> None:
        if self._forks != _forks.count:
            return
        async with self._closing:
            if self._sending is None:
                return
            for consumer in tuple(self._consumers):
                await (consumer.stop() if self._abandoned else consumer.close())
            self._consumers.clear()
            await self._let_go()

    async def _let_go(self) -> None:
        self._is_ending = True
        for member in reversed(self._members):
            await member.close()
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
        parcel = await self.sure.store([item], self.settings.kafka.write_timeout_s)
        for error in parcel.problems.values():
            raise error
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
        await self.topics.forget(queue)

    async def depth(self, queue: str) -> Depth:
        self.check_usable()
        return await depths.depth(self, queue)

    async def peek(self, queue: str, limit: int, after: str | None, *, delayed_only: bool = False) -> Sequence[Waiting]:
        self.check_usable()
        return await looking.peek(self, queue, limit, after, delayed_only)

    async def stored_at(self, topic: str, partition: int, offset: int) -> float | None:
        """When the first record from this offset on was stored."""
        known = self._ages.get((topic, partition))
        if known is not None and known[0] == offset:
            return known[1]
        messages = await self.reader.read(topic, partition, offset, offset, {offset})
        if not messages:
            return None
        self._ages[topic, partition] = (offset, stored_at(messages[0]))
        return self._ages[topic, partition][1]

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
        self._consumers.add(consumer)
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
        if await self._is_lent(queue):
            consumer = LentConsumer(self, queue, owner)
        else:
            consumer = CompetingConsumer(self, queue, owner)
        self._consumers.add(consumer)
        try:
            await consumer.open()
        except BaseException:
            await consumer.close()
            raise
        return consumer

    async def _is_lent(self, queue: str) -> bool:
        """By a share group, or shared out by the log of claims: the first consumer decides for all, for ever. Raises
        `BackendError` for one that is set otherwise: each message would be handled twice."""
        key, wanted = _WAY + queue, self.settings.kafka.share_groups
        found = await self.catalogue.get(key)
        while not found.version:
            found = await self.catalogue.put(key, b"lent" if wanted else b"claimed", 0) or await self.catalogue.get(key)
        is_lent = found.value == b"lent"
        if is_lent != wanted:
            raise BackendError(
                f"receive from {queue}: its messages are {'lent out by a share group' if is_lent else 'claimed'}; set "
                f"kafka.share_groups to {str(is_lent).lower()} here, or take another agent"
            )
        return is_lent

    def feed(self, queue: str, pool: Pool) -> Feed:
        """One for all consumers of the queue in this process."""
        found = self.feeds.get(queue)
        if found is None:
            found = self.feeds[queue] = Feed(self, queue, pool)
        return found

    def discard(self, consumer: CompetingConsumer | LentConsumer) -> None:
        self._consumers.discard(consumer)

    @staticmethod
    def reply_partition(queue: str, partitions: int) -> int:
        return crc32(queue.encode()) % partitions

    async def cleanup(self, older_than_s: float) -> int:
        """Give back the space of what was finished, was stored so long ago, and is owned here. Newer ones are kept
        to recognise duplicates after a change of owner."""
        self.check_usable()
        window_s = max(older_than_s, self.settings.dedup_window_s, self.settings.idempotency_window_s)
        before: dict[Place, int] = {}
        for consumer in tuple(self._consumers):
            for place, watermark in consumer.watermarks().items():
                old = await self.admin.since(place, self.now() - window_s)
                if min(watermark, old) > self._deleted.get(place, 0):
                    before[place] = min(watermark, old)
        if before:
            await self.admin.delete_before(before)
            self._deleted.update(before)
        return 0

    async def forget(self, consumer: KafkaConsumer) -> None:
        """It was closed; a second client of the group goes with its last queue."""
        self._consumers.discard(consumer)
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

    async def _channel_partition(self, channel: str) -> int:
        kept = {"cleanup.policy": "delete", "retention.ms": "3600000"}
        count = await self.topics.ensure_own(self.names.volatile, _VOLATILE_PARTITIONS, kept)
        return crc32(channel.encode()) % count

    async def publish(self, channel: str, body: bytes) -> None:
        self.check_usable()
        partition = await self._channel_partition(channel)
        await self.store_one(Item(self.names.volatile, None, 0, partition, None, body, [(_CHANNEL, channel)]))

    async def listen(self, channel: str, wait_s: float) -> Sequence[bytes]:
        self.check_usable()
        if channel not in self._channels.news:
            await self._channels.listen(self.names.volatile, await self._channel_partition(channel), channel)
        if wait_s > 0:
            await self._channels.wait(channel, wait_s)
        return [message.value() or b"" for message in self._channels.take(channel, 10_000)]
