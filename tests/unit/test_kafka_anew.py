"""A topic that is deleted and made anew under a reader: a member whose client reads logs in memory, with no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from hivewire.backend import Fetched
from hivewire.backends.kafka import member as members
from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.member import Member
from hivewire.engine.shards import Shards
from hivewire.errors import ConnectionLost
from hivewire.testing.conformance.waiting import until

TOPIC: Final = "topic"
PARTITIONS: Final = 2
REFUSED: Final = KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))


class Stored:
    """A message of a stranger: its body is its name."""

    def __init__(self, shard: int, at: int, body: str) -> None:
        self.shard, self.at, self.body = shard, at, body.encode()

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return self.shard

    def offset(self) -> int:
        return self.at

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return self.body

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_000)


class Client:
    """Of one member, who is given all that `given` names. `logs` are what the partitions hold now."""

    def __init__(self) -> None:
        self.logs: dict[int, list[str]] = {shard: [] for shard in range(PARTITIONS)}
        self.given: list[int] = [0]
        self.commits: dict[int, int] = {}
        self.refuses = False
        self.refused = 0
        self.at: dict[int, int] = {}
        self._paused: set[int] = set()
        self._on_assign: Callable[..., None] | None = None

    def subscribe(self, topics: Sequence[str], on_assign: Callable[..., None], **others: object) -> None:
        self._on_assign = on_assign

    def incremental_assign(self, starts: Sequence[TopicPartition]) -> None:
        self.at.update({at.partition: at.offset for at in starts})

    def pause(self, places: Sequence[TopicPartition]) -> None:
        self._paused.update(at.partition for at in places)

    def resume(self, places: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(at.partition for at in places)

    def seek(self, start: TopicPartition) -> None:
        self.at[start.partition] = start.offset

    def committed(self, asked: Sequence[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, at.partition, self.commits.get(at.partition, -1001)) for at in asked]

    def commit(self, offsets: Sequence[TopicPartition], asynchronous: bool) -> Sequence[TopicPartition]:
        if self.refuses:
            self.refused += 1
            raise REFUSED
        self.commits.update({at.partition: at.offset for at in offsets})
        return offsets

    def poll(self, timeout: float) -> Stored | None:
        new = [shard for shard in self.given if shard not in self.at]
        if new and self._on_assign is not None:
            self._on_assign(self, [TopicPartition(TOPIC, shard) for shard in new])
        return next(iter(self.consume(1, 0)), None)

    def consume(self, most: int, timeout: float) -> list[Stored]:
        found: list[Stored] = []
        for shard in self.at.keys() - self._paused:
            log = self.logs[shard]
            if self.at[shard] > len(log):  # as the client does by itself
                self.at[shard] = 0
            while self.at[shard] < len(log) and len(found) < most:
                found.append(Stored(shard, self.at[shard], log[self.at[shard]]))
                self.at[shard] += 1
        return found

    def list_topics(self, topic: str, timeout: float) -> None:
        return None

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, shard) for shard in self.at]

    def memberid(self) -> str:
        return ""

    def unsubscribe(self) -> None:
        return None

    def close(self) -> None:
        return None


class Engine:
    """Owns what it is told to, and handles what is fetched."""

    def __init__(self) -> None:
        self.shards = Shards(per_record_ack=False)
        self.handled: list[str] = []
        self.losses = 0

    async def gained(self, shard: int, token: int, saved: bytes, settled: object = ()) -> None:
        self.shards.gained(shard, token, saved)

    def lost(self, shards: set[int]) -> None:
        self.losses += 1
        self.shards.lost(shards)

    async def losing(self, shards: set[int], within_s: float) -> Any:
        states = self.shards.states(shards)
        self.shards.lost(shards)
        return states


class Admin:
    def __init__(self) -> None:
        self.id = "first"

    async def topic_id(self, topic: str) -> str:
        return self.id

    async def ends(self, places: object) -> dict[Any, int]:
        return {}

    async def since(self, place: object, at: float) -> int:
        return 1_000


class Scene:
    def __init__(self, client: Client) -> None:
        self.client, self.engine, self.admin = client, Engine(), Admin()
        self.backend = SimpleNamespace(
            settings=SimpleNamespace(lease_s=6.0, dedup_window_s=1.0, idempotency_window_s=1.0, dedup_window_ids=10),
            names=SimpleNamespace(topic=lambda queue: TOPIC),
            admin=self.admin,
            catalogue=SimpleNamespace(get=self._nothing),
            delays=SimpleNamespace(keep_moving=self._nothing),
            pulse=SimpleNamespace(remove=lambda seat: None),
            check_usable=lambda: None,
            not_before=lambda at: None,
            now=lambda: 2.0,
            forget=self._nothing,
        )
        self.member = Member({}, 60.0)
        backend: Any = self.backend
        owner: Any = self.engine
        self.consumer = KafkaConsumer(backend, "q", self.member, owner)

    @staticmethod
    async def _nothing(*arguments: object) -> Any:
        return SimpleNamespace(version=0)

    async def handle(self, *names: str) -> list[Fetched]:
        """Until these were handled, each of them once or more; returns what was, to be settled."""
        taken: list[Fetched] = []
        missing = set(names)

        async def take() -> None:
            while missing:
                for fetched in self.engine.shards.accept(await self.consumer.fetch(100, 0.05))[0]:
                    taken.append(fetched)
                    name = bytes(fetched.record.body).decode()
                    self.engine.handled.append(name)
                    missing.discard(name)

        await asyncio.wait_for(take(), 10)
        return taken

    async def settle(self, taken: Sequence[Fetched]) -> Sequence[Fetched]:
        return await self.engine.shards.settle(self.consumer, taken, (), 2.0)

    async def close(self) -> None:
        self.client.refuses = False
        await self.consumer.close()
        await self.member.close()


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Any:
    client = Client()
    monkeypatch.setattr(members, "Consumer", lambda options: client)
    scene = Scene(client)
    scene.member.join(TOPIC, scene.consumer)
    await until(lambda: scene.consumer.owned == {0}, "it is taken over")
    yield scene
    await scene.close()


def names(word: str, count: int) -> list[str]:
    return [f"{word}{n}" for n in range(count)]


async def test_a_commit_that_ends_after_the_topic_was_made_anew_hides_none_of_its_messages(scene: Scene) -> None:
    """It was refused for so long, and says how far the one before was finished."""
    scene.client.logs[0] = names("old", 8)
    taken = await scene.handle(*names("old", 8))
    scene.client.refuses = True
    saving = asyncio.ensure_future(scene.settle(taken))
    await until(lambda: scene.client.refused > 0, "the commit is refused")
    scene.client.logs[0] = names("new", 3)
    await until(lambda: scene.client.at[0] == 3, "the new ones are read")
    scene.client.refuses = False
    await saving
    await until(lambda: scene.client.commits.get(0) == 0, "the commit is taken back")
    await until(lambda: scene.consumer._buffered == 3, "the new ones come")
    scene.client.logs[0] = names("new", 5)
    assert not await scene.settle(await scene.handle(*names("new", 5)))
    assert scene.engine.handled == [*names("old", 8), *names("new", 5)]
    assert scene.client.commits == {0: 5}


async def test_what_was_finished_elsewhere_before_it_came_here_is_no_sign_of_another_topic(scene: Scene) -> None:
    """The watermark passes what is still to be read."""
    (held,) = scene.consumer.held.values()
    scene.client.logs[0] = names("one", 2)
    await scene.handle("one0", "one1")
    held.watermark = 7
    scene.client.logs[0] = names("one", 9)
    await scene.handle(*names("one", 9)[2:])
    assert (scene.engine.handled, scene.engine.losses) == (names("one", 9), 0)


async def test_a_commit_behind_the_end_is_taken_back(scene: Scene) -> None:
    scene.client.commits[1] = 50
    scene.client.logs[1] = names("one", 3)
    scene.client.given = [0, 1]
    await scene.settle(await scene.handle(*names("one", 3)))
    assert (scene.engine.handled, scene.client.commits[1]) == (names("one", 3), 3)


async def test_two_who_tell_of_the_new_topic_begin_it_once(scene: Scene) -> None:
    scene.client.logs[0] = names("old", 2)
    await scene.settle(await scene.handle(*names("old", 2)))
    scene.client.logs[0] = names("new", 4)
    await until(lambda: scene.consumer._buffered == 2, "it stands in the midst of the new one")
    scene.admin.id = "second"
    await asyncio.gather(scene.consumer.reads("second"), scene.consumer.reads("second"))
    await scene.settle(await scene.handle(*names("new", 4)))
    await scene.consumer.reads("second")
    assert (scene.engine.handled, scene.engine.losses) == ([*names("old", 2), *names("new", 4)], 1)
    assert scene.client.commits == {0: 4}


async def test_a_partition_that_is_gained_of_the_new_topic_does_not_hide_that_another_is_of_the_old(
    scene: Scene,
) -> None:
    scene.client.logs[0] = names("old", 2)
    await scene.settle(await scene.handle(*names("old", 2)))
    scene.client.logs = {0: names("new", 3), 1: ["other"]}
    scene.admin.id = "second"
    scene.client.given = [0, 1]
    await scene.handle("other", "new2")
    await scene.consumer.reads("second")
    await scene.handle("new0", "new1", "new2")
    assert scene.engine.losses == 1


async def test_one_that_cannot_be_taken_back_yet_is_tried_again(scene: Scene) -> None:
    """Until then nothing of it is handled."""
    scene.client.logs[0] = names("old", 2)
    await scene.settle(await scene.handle(*names("old", 2)))
    scene.client.refuses = True
    scene.client.logs[0] = names("new", 4)
    scene.admin.id = "second"
    await scene.consumer.reads("second")
    await until(lambda: scene.client.refused > 1, "it is tried again")
    assert not await scene.consumer.fetch(10, 0.01)
    scene.client.refuses = False
    await scene.settle(await scene.handle(*names("new", 4)))
    assert scene.client.commits == {0: 4}


async def test_who_gives_up_a_partition_that_was_made_anew_commits_its_start(scene: Scene) -> None:
    scene.client.logs[0] = names("old", 2)
    await scene.settle(await scene.handle(*names("old", 2)))
    scene.client.refuses = True
    await scene.consumer.reads("second")
    states = await scene.consumer.give_up({0}, waits=True)
    assert [saved.watermark for _, saved in states.values()] == [0]


async def test_what_fails_of_beginning_anew_is_told_and_changes_nothing(scene: Scene) -> None:
    place, tokens = (TOPIC, 0), scene.member.tokens
    scene.client.refuses = True
    with pytest.raises(ConnectionLost):
        await scene.member.begin_anew(place, tokens[place])
    scene.client.refuses = False
    await scene.member.begin_anew(place, tokens[place] - 1)
    assert (scene.member.tokens, scene.engine.losses) == (tokens, 0)
