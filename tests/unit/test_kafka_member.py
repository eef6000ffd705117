"""How a member of a Kafka group ends, whatever its client says."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock, create_autospec

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException

from hivewire.backend import Saved
from hivewire.backends.kafka import commits
from hivewire.backends.kafka import member as members
from hivewire.backends.kafka.consumer import KafkaConsumer
from hivewire.backends.kafka.member import Member
from hivewire.testing.conformance.waiting import until

PLACE = ("topic", 0)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    made: MagicMock = MagicMock(spec=Consumer)
    made.poll.return_value = None
    made.assignment.return_value = []
    made.memberid.return_value = ""
    monkeypatch.setattr(members, "Consumer", lambda _: made)
    return made


def names(client: MagicMock) -> list[str]:
    return [call[0] for call in client.mock_calls]


async def test_who_has_given_up_its_last_topic_leaves_before_it_is_closed(client: MagicMock) -> None:
    """The group may be sharing out: then what is asked of it is not said before that ends."""
    member = Member({}, 6.0)
    member.join("topic", create_autospec(KafkaConsumer, instance=True))
    await until(lambda: client.subscribe.called, "it joins")
    member._has_name = True
    member.leave("topic")
    await until(lambda: client.unsubscribe.called, "it leaves")
    client.memberid.side_effect = ["name", "name", ""]
    await member.close()
    assert names(client)[-6:] == ["memberid", "poll", "memberid", "poll", "memberid", "close"]


async def test_nobody_waits_for_a_commit_of_one_that_could_not_leave(client: MagicMock) -> None:
    client.unsubscribe.side_effect = KafkaException(KafkaError(KafkaError._STATE))
    client.commit.side_effect = KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
    member = Member({}, 6.0)
    member.join("topic", create_autospec(KafkaConsumer, instance=True))
    await until(lambda: client.subscribe.called, "it joins")
    member.tokens = {PLACE: 1}
    saving = asyncio.ensure_future(member.save({PLACE: (1, Saved(0, b""))}))
    await until(lambda: client.commit.called, "it commits")
    await member.close()
    assert await asyncio.wait_for(saving, 10) == {PLACE}
    assert names(client)[-1] == "close"


async def test_who_ends_tries_once_more_to_commit_what_was_refused_just_now(
    client: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_AGAIN_S", 3_600.0)
    client.commit.side_effect = [KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS)), []]
    member = Member({}, 6.0)
    member.join("topic", create_autospec(KafkaConsumer, instance=True))
    member.tokens = {PLACE: 1}
    saving = asyncio.ensure_future(member.save({PLACE: (1, Saved(0, b""))}))
    await until(lambda: client.commit.called, "it commits")
    await member.close()
    assert await asyncio.wait_for(saving, 10) == set()
