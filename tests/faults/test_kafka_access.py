"""Kafka behind TLS and passwords, and what is told to who does not come in; compression, acks, the newer groups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are public
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from hivewire.errors import BackendError, ConnectionLost, SettingsError
from hivewire.factory import connect
from hivewire.protocol import Protocol
from hivewire.testing.conformance.scenario import empty, send_numbered, take, task
from hivewire.testing.kafka_servers import Broker
from hivewire.testing.leaks import nothing_left_behind
from hivewire.testing.servers import free_port
from tests.conformance.kafka_fabric import KafkaFabric
from tests.faults.certificates import Authority
from tests.needed import needed

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(180)]

_SCRAM = {"SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256, "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512}


class Guarded:
    """A broker that is reached in the open, by TLS, and by TLS with a password."""

    def __init__(self, folder: Path) -> None:
        self.trusted, self.other = Authority(folder, "trusted"), Authority(folder, "other")
        self.tls_port, self.user_port = free_port(), free_port()
        ports = {1: (free_port(), free_port())}
        open_port, controller = ports[1]
        guarded = f"SSL://127.0.0.1:{self.tls_port},SASL_SSL://127.0.0.1:{self.user_port}"
        plain, scram = (
            "org.apache.kafka.common.security.plain.PlainLoginModule",
            "org.apache.kafka.common.security.scram.ScramLoginModule",
        )
        more = [
            f"listeners=PLAINTEXT://127.0.0.1:{open_port},CONTROLLER://127.0.0.1:{controller},{guarded}",
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{open_port},{guarded}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f'listener.name.sasl_ssl.plain.sasl.jaas.config={plain} required user_alice="sesame";',
            *(f"listener.name.sasl_ssl.{name.lower()}.sasl.jaas.config={scram} required;" for name in _SCRAM),
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self.trusted.issue('broker')}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.trusted.ca}",
        ]
        self.broker = Broker(folder / "broker", ports=ports, more=more)

    def add_users(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.broker.address})
        for mechanism in _SCRAM.values():
            user = UserScramCredentialUpsertion("alice", ScramCredentialInfo(mechanism, 4096), b"sesame")
            for done in admin.alter_user_scram_credentials([user]).values():
                done.result(30)

    def tls(self, **settings: Any) -> Protocol:
        given = {"kafka_tls": True, "kafka_tls_ca_file": str(self.trusted.ca), **settings}
        return _connect(f"kafka://127.0.0.1:{self.tls_port}", **given)

    def user(self, mechanism: str, password: str = "sesame", **settings: Any) -> Protocol:
        given = {"kafka_tls": True, "kafka_tls_ca_file": str(self.trusted.ca), **settings}
        given |= {"kafka_username": "alice", "kafka_password": password, "kafka_sasl_mechanism": mechanism}
        return _connect(f"kafka://127.0.0.1:{self.user_port}", **given)


def _connect(url: str, **settings: Any) -> Protocol:
    by_name = {name.replace("kafka_", "kafka.", 1): value for name, value in settings.items()}
    return connect(url, **by_name)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("guarded"))
    with needed():
        made.broker.start()
    try:
        made.add_users()
        yield made
    finally:
        made.broker.kill()


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left_behind():
        yield


async def works(protocol: Protocol, agent: str) -> None:
    async with protocol:
        await send_numbered(protocol, agent, 5)
        assert len(await take(protocol, agent, 5)) == 5
        await empty(protocol, agent)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_user_comes_in(guarded: Guarded, mechanism: str) -> None:
    await works(guarded.user(mechanism), mechanism.lower())


async def test_an_encrypted_connection_works(guarded: Guarded) -> None:
    await works(guarded.tls(), "secret")


async def refused(protocol: Protocol) -> str:
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(BackendError) as told:
        async with protocol:
            pass
    assert not told.value.retryable
    assert loop.time() - began < 8, "it is told at once, not when a time is over"
    return str(told.value)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_told(guarded: Guarded, mechanism: str) -> None:
    said = await refused(guarded.user(mechanism, "barley"))
    assert "refuses this user" in said
    assert "kafka.password" in said
    assert "barley" not in said


async def test_a_certificate_of_a_stranger_is_told(guarded: Guarded) -> None:
    said = await refused(guarded.tls(kafka_tls_ca_file=str(guarded.other.ca)))
    assert "certificate is refused" in said
    assert "kafka.tls_ca_file" in said


async def test_no_tls_at_the_port_for_tls_is_told(guarded: Guarded) -> None:
    """The broker hangs up without a word, again and again: that is not waited out."""
    with pytest.raises(ConnectionLost, match=r"hangs up on every first request.*kafka\.tls"):
        async with _connect(f"kafka://127.0.0.1:{guarded.tls_port}"):
            pass


async def test_tls_at_a_port_without_is_told(guarded: Guarded) -> None:
    url = guarded.broker.url
    assert "kafka.tls" in await refused(_connect(url, kafka_tls=True, kafka_tls_ca_file=str(guarded.trusted.ca)))


async def test_what_does_not_go_together_is_refused_before_anything_is_asked(guarded: Guarded) -> None:
    url = guarded.broker.url
    for settings, name in (
        ({"kafka_sasl_mechanism": "PLAIN"}, "kafka.sasl_mechanism"),
        ({"kafka_username": "alice"}, "kafka.username"),
        ({"kafka_tls": True, "kafka_tls_ca_file": "/nowhere.pem"}, "kafka.tls_ca_file"),
        ({"kafka_tls": True, "kafka_tls_key_file": "key.pem"}, "kafka.tls_key_file"),
    ):
        with pytest.raises(SettingsError, match=name):
            async with _connect(url, **settings):
                pass


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_every_compression_arrives(tmp_path: Path, compression: str) -> None:
    async with KafkaFabric(tmp_path) as fabric:
        member = await fabric.member(**{"kafka.compression": compression, "kafka.batch_size": 7})
        await member.send_many([task("packed", n, metadata={"pad": "x" * 2_000}) for n in range(50)])
        assert len(await take(member, "packed", 50)) == 50


@pytest.mark.parametrize("acks", ["0", "1"])
async def test_fewer_acks_are_said_aloud(tmp_path: Path, acks: str) -> None:
    async with KafkaFabric(tmp_path) as fabric:
        member = await fabric.member(**{"kafka.require_acks": acks})
        health = await member.health()
        assert any(f"acks={acks}" in warning for warning in health.warnings)
        assert health.durability == ("volatile" if acks == "0" else "process")
        await send_numbered(member, "quick", 20)
        taken = await take(member, "quick", 20)
        assert len(taken) == 20
        await empty(member, "quick")


async def test_the_newer_group_protocol_shares_and_says_how_long_a_takeover_takes(tmp_path: Path) -> None:
    async with KafkaFabric(tmp_path) as fabric:
        member = await fabric.member(**{"kafka.group_protocol": "consumer"})
        assert any("group_protocol=consumer" in warning for warning in (await member.health()).warnings)
        await send_numbered(member, "newer", 20, keys=["a", "b", "c"])
        assert len(await take(member, "newer", 60)) == 60
        await empty(member, "newer")
