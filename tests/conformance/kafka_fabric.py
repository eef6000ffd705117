"""Kafka for the conformance suite: one broker for all tests of a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.kafka_servers import Broker
from hivewire.testing.servers import free_port
from tests.needed import needed

_shared: list[Broker] = []


def broker() -> Broker:
    """Made with the first test that wants it, killed when the process ends. Without Kafka the test says that it did
    not run; where CI is set it fails."""
    if not _shared:
        made = Broker(Path(tempfile.mkdtemp(prefix="hivewire-kafka-")))
        atexit.register(_remove, made)
        with needed():
            made.start()
        _shared.append(made)
    return _shared[0]


def _remove(made: Broker) -> None:
    made.kill()
    shutil.rmtree(made.folder, ignore_errors=True)


class KafkaFabric(Fabric):
    """Topics and a group of its own; an outage is a kill -9 of the broker, and its end the start on the same port."""

    def __init__(self, folder: Path) -> None:
        self.broker = broker()
        prefix = f"t{uuid4().hex[:10]}"
        super().__init__(f"{self.broker.url}?topic_prefix={prefix}&group_id={prefix}", folder, lease_s=6.0)
        self.unreachable_url = f"kafka://127.0.0.1:{free_port()}"

    @property
    def takeover_s(self) -> float:
        return self.lease_s + 3.0

    @property
    def resume_s(self) -> float:
        """The group of a broker that was killed may wait for the session of its members to end."""
        return self.lease_s + 3.0

    @property
    def joins_slowly(self) -> bool:
        return True

    def restart_store(self) -> None:
        self.broker.kill()
        self.broker.start()

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.broker.kill()
        try:
            yield
        finally:
            self.broker.start()
