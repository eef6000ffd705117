"""Share groups (`kafka.share_groups`, experimental): the cases of competing queues, with the lesser promises where a
share group cannot keep them; a worker that is killed, a message that kills, and processes that are set otherwise.

HIVEWIRE_SOAK=1 pytest tests/faults/test_kafka_share.py             # all cases: a member needs five seconds to join
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivewire.backends.kafka.lent import LOCK_S
from hivewire.errors import BackendError
from hivewire.factory import connect
from hivewire.testing.conformance import competing
from hivewire.testing.conformance.competing import pool as pool
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import empty, take, take_one, task
from hivewire.testing.conformance.waiting import SOAK
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.kafka_fabric import KafkaFabric

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(180)]

SAMPLED = {
    "test_a_dead_workers_messages_are_taken_over_in_time",
    "test_an_idle_worker_takes_what_a_busy_one_does_not",
    "test_only_starts_count_and_a_killer_takes_nobody_with_it",
}
CASES = {name: case for name, case in vars(competing).items() if name.startswith("test_")}
globals().update({name: CASES[name] for name in (CASES if SOAK else SAMPLED)})


class ShareFabric(KafkaFabric):
    """With one partition: several are shared out among the members, and what is in one is not for all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url += "&share_groups=true&num_partitions=1"

    @property
    def takeover_s(self) -> float:
        return LOCK_S + 3.0


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    made = ShareFabric(tmp_path)
    async with nothing_left_behind(), made:
        yield made


async def test_what_failed_comes_again_later_and_dies_with_its_headers(fabric: Fabric, pool: str) -> None:
    """And a process that is set otherwise is told so: each message would be handled twice."""
    assert [warning for warning in (await fabric.protocol.health()).warnings if "experimental" in warning]
    sent = task(pool, 1, metadata={"a": "b"})
    await fabric.protocol.send(sent)
    delivery = await take_one(fabric.protocol, pool)
    began = fabric.now()
    await delivery.nack(delay_s=0.5)
    again = await take_one(fabric.protocol, pool)
    assert fabric.now() - began >= 0.5
    assert (again.message.id, again.attempt) == (sent.id, 2)
    await again.reject("no")
    await empty(fabric.protocol, pool, dead=1)
    (letter,) = await fabric.protocol.dead_letters(pool)
    assert (letter.reason, letter.attempts, letter.message) == ("rejected", 2, sent)
    assert await fabric.protocol.replay(pool) == 1
    (replayed,) = await take(fabric.protocol, pool, 1)
    assert replayed.message.metadata == {"a": "b"}
    await empty(fabric.protocol, pool)
    async with connect(fabric.url.replace("share_groups=true", "share_groups=false")) as other:
        with pytest.raises(BackendError, match=r"lent out by a share group; set kafka\.share_groups to true"):
            await other.receive(pool, wait_s=0.1)
