"""Topics, ends of partitions and committed offsets: what is asked of the brokers, not read from a log."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are public
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from hivewire.backends.kafka.clients import NotYet, Options, patiently, problem
from hivewire.backends.kafka.fleeting import Fleeting
from hivewire.backends.kafka.tail import Place
from hivewire.backends.kafka.together import Together
from hivewire.errors import BackendError, ConnectionLost

_REQUEST_S: Final = 2.0
_LOOK_S: Final = 6.0
"""For what topics there are."""
_CREATE_S: Final = 10.0
_PROPAGATION_S: Final = 15.0
_LOOK_EACH_S: Final = 0.02
_PING_S: Final = 1.0
_MOST_HANG_UPS: Final = 10
"""A broker that starts or ends refuses connections, or ends a few; one that is spoken to in the wrong way ends all."""


class Admin:
    """Its client is there while something is asked, and for some seconds after."""

    def __init__(self, options: Options, topic: str) -> None:
        """`topic`: any one, to be asked for when it is only about the brokers."""
        self._options = options
        self._topic = topic
        self.clients: Fleeting[AdminClient] = Fleeting(lambda: AdminClient(options.admin()), _end)
        self._looks: Together[str, tuple[Any, BackendError | None]] = Together(self._look)
        self._ids: Together[str, Mapping[str, str]] = Together(self.topic_ids)
        self._creates: Together[NewTopic, Mapping[str, concurrent.futures.Future[None]]] = Together(self._create)

    async def ends(self, places: Iterable[Place], *, first: bool = False) -> dict[Place, int]:
        """The next offset of each partition, or its first one."""
        asked = tuple(places)

        async def ask() -> dict[Place, int]:
            try:
                return await self._ends(asked, first)
            except NotYet:
                await self._look_again({topic for topic, _ in asked})
                raise

        return await patiently(ask)

    async def _look_again(self, topics: Iterable[str]) -> None:
        """Who leads them now: this client would ask the old leader for as long as it knows of no other."""
        for topic in topics:
            await self._looks.ask(topic)

    async def _ends(self, places: Sequence[Place], first: bool) -> dict[Place, int]:
        spec = OffsetSpec.earliest() if first else OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(topic, partition): spec for topic, partition in places}
        if not asked:
            return {}
        found = {}
        with self.clients.kept():
            for place, future in self.clients.client.list_offsets(asked, request_timeout=_REQUEST_S).items():
                answer = await _answer(future, f"look at {place.topic}")
                found[place.topic, place.partition] = int(answer.offset)
        return found

    async def since(self, place: Place, at: float) -> int:
        """The first offset that was stored then or later; the end if there is none."""
        first = max(0, int(at * 1000))  # below 0 it means other things
        asked = {TopicPartition(*place): OffsetSpec.for_timestamp(first)}

        async def ask() -> int:
            try:
                with self.clients.kept():
                    (future,) = self.clients.client.list_offsets(asked, request_timeout=_REQUEST_S).values()
                    return int((await _answer(future, f"look at {place[0]}")).offset)
            except NotYet:
                await self._look_again({place[0]})
                raise

        found = await patiently(ask)
        return found if found >= 0 else (await self.ends([place]))[place]

    async def create(self, topic: str, partitions: int, copies: int, config: Mapping[str, str]) -> int:
        """Make the topic if it is not there; its number of partitions, when all have a leader."""
        made = NewTopic(topic, num_partitions=partitions, replication_factor=copies, config=dict(config))

        async def ask() -> None:
            answers = await self._creates.ask(made)
            await _answer(answers[topic], f"create topic {topic}", ignore=KafkaError.TOPIC_ALREADY_EXISTS)

        try:
            await patiently(ask)
        except ConnectionLost:
            raise
        except BackendError as error:
            raise BackendError(
                f"{error}; or make it yourself with {partitions} partitions and "
                + ", ".join(f"{name}={value}" for name, value in config.items())
            ) from error
        return await self.partitions(topic)

    async def _create(self, wanted: Sequence[NewTopic]) -> Mapping[str, concurrent.futures.Future[None]]:
        """All are answered when this returns. A request that names a topic twice ends the process (a segmentation fault
        of confluent-kafka 2.16.1); who asked for it first may have been cancelled, and another asks again."""
        each = list({made.topic: made for made in wanted}.values())
        with self.clients.kept():
            answers: dict[str, concurrent.futures.Future[None]] = self.clients.client.create_topics(
                each, operation_timeout=_CREATE_S, request_timeout=_CREATE_S
            )
            await asyncio.gather(*map(asyncio.wrap_future, answers.values()), return_exceptions=True)
        return answers

    async def partitions(self, topic: str) -> int:
        """Waits until the brokers know of it and each partition has a leader."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PROPAGATION_S
        while True:
            count = await self.find(topic)
            if count:
                return count
            if loop.time() > deadline:
                raise ConnectionLost(f"topic {topic}: its partitions have no leaders after {_PROPAGATION_S} s")
            await asyncio.sleep(_LOOK_EACH_S)

    async def find(self, topic: str) -> int:
        """How many partitions; 0: there is no such topic, or no leader yet."""
        found, failed = await self._looks.ask(topic)
        if failed is not None:
            raise failed
        partitions = found.topics[topic].partitions if topic in found.topics else {}
        return len(partitions) if partitions and all(p.leader >= 0 for p in partitions.values()) else 0

    async def _look(self, topics: Iterable[str]) -> tuple[Any, BackendError | None]:
        return await self.clients.ask(_topics, frozenset(topics))

    async def topic_id(self, topic: str) -> str:
        """Another one each time that a topic of this name is made."""
        found = await self._ids.ask(topic)
        if topic not in found:
            raise NotYet(f"look at {topic}: there is no such topic")
        return found[topic]

    async def topic_ids(self, topics: Iterable[str]) -> Mapping[str, str]:
        """Of those of them that there are."""
        names = sorted(set(topics))
        if not names:
            return {}
        found = {}
        with self.clients.kept():
            asked = self.clients.client.describe_topics(TopicCollection(names), request_timeout=_REQUEST_S)
            for topic, future in asked.items():
                answer = await _answer(future, f"look at {topic}", ignore=KafkaError.UNKNOWN_TOPIC_OR_PART)
                if answer is not None:
                    found[topic] = str(answer.topic_id)
        return found

    async def delete_before(self, offsets: Mapping[Place, int]) -> None:
        """Give back the space of records below these offsets."""
        asked = [TopicPartition(topic, partition, offset) for (topic, partition), offset in offsets.items()]
        with self.clients.kept():
            for place, future in self.clients.client.delete_records(asked, request_timeout=_CREATE_S).items():
                await _answer(future, f"delete old records of {place.topic}", ignore=KafkaError.OFFSET_OUT_OF_RANGE)

    async def set_up_group(self, group: str, config: Mapping[str, str]) -> None:
        """What the brokers shall hold to in this group, whether it exists already or not."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
        ]
        asked = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
        with self.clients.kept():
            (done,) = self.clients.client.incremental_alter_configs([asked], request_timeout=_CREATE_S).values()
            await _answer(done, f"set up the share group {group}")

    async def ping(self, within_s: float = _REQUEST_S) -> int:
        """How many brokers there are. A refusal is told at once, and in full.

        `describe_cluster` is not asked: librdkafka 2.16 aborts the process when a broker that has just started answers
        that there are none, and when the client ends before the answer.
        """
        options, loop = self._options, asyncio.get_running_loop()
        options.refusals.last, options.refusals.hang_ups = None, 0
        deadline = loop.time() + within_s
        with self.clients.kept():
            while True:
                step_s = min(_PING_S, max(deadline - loop.time(), _LOOK_EACH_S))
                found, failed = await self.clients.ask(_brokers, self._topic, step_s)
                if found:
                    return found
                refused = options.refusals.explained(options.kafka)
                if refused is not None:
                    raise refused
                hangs_up = not options.kafka.tls and options.refusals.hang_ups >= _MOST_HANG_UPS
                if hangs_up or loop.time() >= deadline:
                    break
                await asyncio.sleep(_LOOK_EACH_S)
        lost = failed or ConnectionLost("ask the brokers: there are none yet")
        if options.kafka.tls or not isinstance(lost, ConnectionLost):
            raise lost
        what = "the broker hangs up on every first request" if hangs_up else "if the brokers are up"
        raise ConnectionLost(f"{lost}; {what}: is this a port for TLS (kafka.tls)?")


def _brokers(client: AdminClient, topic: str, within_s: float) -> tuple[int, BackendError | None]:
    """An error is given back as a value, as in `_topics`."""
    try:
        return len(client.list_topics(topic, timeout=within_s).brokers), None
    except KafkaException as error:
        client.poll(0)  # what the broker says against us is told here
        return 0, problem("ask the brokers", error)


async def _end(client: AdminClient) -> None:
    await asyncio.to_thread(_let_go, client)


def _topics(client: AdminClient, topics: Set[str]) -> tuple[Any, BackendError | None]:
    """Of several, all that there are. An error is given back as a value: one that is raised would hold the client in
    its traceback."""
    try:
        if len(topics) == 1:
            return client.list_topics(*topics, timeout=_LOOK_S), None
        return client.list_topics(timeout=_LOOK_S), None
    except KafkaException as error:
        return None, problem(f"look at {', '.join(sorted(topics)[:3])}", error)


def _let_go(client: AdminClient) -> None:
    """Its end waits for its threads, which must not be the event loop's doing."""
    client.poll(0)
    del client


async def _answer(future: concurrent.futures.Future[Any], doing: str, *, ignore: int | None = None) -> Any:
    try:
        return await asyncio.wrap_future(future)
    except KafkaException as error:
        if ignore is not None and error.args[0].code() == ignore:
            return None
        raise problem(doing, error) from None
    except concurrent.futures.CancelledError:
        raise ConnectionLost(f"{doing}: cancelled") from None
