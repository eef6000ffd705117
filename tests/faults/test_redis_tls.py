"""Encrypted connections: who is trusted, and what is said to whom is not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hivewire.errors import BackendError, ConnectionLost, SettingsError
from hivewire.factory import connect
from hivewire.testing.conformance.scenario import empty, serving, take, task
from hivewire.testing.conformance.waiting import until
from hivewire.testing.leaks import Census, no_unhandled_errors
from hivewire.testing.servers import RedisServer, free_port
from tests.conformance.backends import start
from tests.faults.certificates import Authority
from tests.faults.load import Load, Seen


class Encrypted:
    """A server that is reached by TLS alone. Where the server's program was built without it, something in front
    of it speaks TLS."""

    def __init__(self, folder: Path, certificate: Path, clients: Path | None = None) -> None:
        self.port = free_port()
        self._certificate = certificate
        self._clients = clients
        self.server = RedisServer(
            folder, "--tls-port", str(self.port),
            "--tls-cert-file", str(certificate), "--tls-key-file", str(certificate),
            "--tls-ca-cert-file", str(clients or certificate), "--tls-auth-clients", "yes" if clients else "no",
        )  # fmt: skip
        self._folder = folder
        self._front: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"

    async def start(self) -> None:
        try:
            start(self.server)
        except RuntimeError as error:
            if "tls" not in str(error).lower():
                raise
            self.server = RedisServer(self._folder)
            start(self.server)
            speaks = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._clients)
            speaks.load_cert_chain(self._certificate)
            if self._clients:
                speaks.verify_mode = ssl.CERT_REQUIRED
            self._front = await asyncio.start_server(self._relay, "127.0.0.1", self.port, ssl=speaks)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", self.server.port)
        ways = [asyncio.create_task(_pipe(reader, questions)), asyncio.create_task(_pipe(answers, writer))]
        self._pipes.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.close()
        questions.close()

    async def stop(self) -> None:
        if self._front is not None:
            self._front.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        self.server.kill()


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        return


@asynccontextmanager
async def encrypted(folder: Path, certificate: Path, clients: Path | None = None) -> AsyncIterator[Encrypted]:
    before = Census.take()
    made = Encrypted(folder / "redis", certificate, clients)
    try:
        with no_unhandled_errors():
            await made.start()
            yield made
    finally:
        await made.stop()
    await before.check()


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls", "ours")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls", "other")


async def refused(url: str, match: str, **redis: Any) -> None:
    """At once, by one sentence, and not as something that may pass."""
    began = asyncio.get_running_loop().time()
    with pytest.raises(BackendError, match=match) as caught:
        await connect(url, redis=redis).send(task("x", 1))
    assert not caught.value.retryable
    assert asyncio.get_running_loop().time() - began < 5


async def test_all_three_connections_are_encrypted_and_come_back(tmp_path: Path, ours: Authority) -> None:
    async with (
        encrypted(tmp_path, ours.issue("server")) as made,
        connect(made.url, redis={"tls_ca_file": str(ours.ca)}) as protocol,
    ):
        load, seen = Load(protocol, "sealed"), Seen()  # type: ignore[arg-type]  # an engine, as connect makes it
        async with serving(protocol, "sealed", seen):
            async with load.running():
                await until(lambda: seen.total > 100, "messages are handled")
                assert made.server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")[:1] == b":"
                before = seen.total
                await until(lambda: seen.total > before + 100, "they go on")
            await empty(protocol, "sealed")
        seen.check(load)
        await protocol.send(task("large", 1, metadata={"pad": "x" * 900_000}))
        await take(protocol, "large", 1)


async def test_another_authority_is_refused(tmp_path: Path, ours: Authority, other: Authority) -> None:
    async with encrypted(tmp_path, ours.issue("server")) as made:
        await refused(made.url, "certificate is refused.*tls_ca_file", tls_ca_file=str(other.ca))
        await refused(made.url, "certificate is refused")  # the system's authorities


async def test_a_certificate_that_has_run_out_is_refused(tmp_path: Path, ours: Authority) -> None:
    async with encrypted(tmp_path, ours.issue("server", days=-1)) as made:
        await refused(made.url, "expired", tls_ca_file=str(ours.ca))


async def test_a_certificate_for_another_host_is_refused_unless_told_not_to(tmp_path: Path, ours: Authority) -> None:
    async with encrypted(tmp_path, ours.issue("server", host="redis.example")) as made:
        await refused(made.url, "IP address mismatch", tls_ca_file=str(ours.ca))
        settings = {"tls_ca_file": str(ours.ca), "tls_check_host": False}
        async with connect(made.url, redis=settings) as protocol:
            await protocol.send(task("x", 1))


async def test_a_server_may_ask_who_we_are(tmp_path: Path, ours: Authority, other: Authority) -> None:
    async with encrypted(tmp_path, ours.issue("server"), clients=ours.ca) as made:
        trust = {"tls_ca_file": str(ours.ca)}
        for certificate in (None, str(other.issue("stranger"))):
            redis = {**trust, "tls_cert_file": certificate, "max_retries": 0}
            with pytest.raises(BackendError, match=r"connect to .* asks for a certificate"):
                await connect(made.url, redis=redis).send(task("x", 1))
        async with connect(made.url, redis={**trust, "tls_cert_file": str(ours.issue("client"))}) as protocol:
            await protocol.send(task("x", 1))


async def test_plain_to_an_encrypted_port_and_the_other_way_round(tmp_path: Path, ours: Authority) -> None:
    async with encrypted(tmp_path, ours.issue("server")) as made:
        plain = made.url.replace("rediss", "redis")
        with pytest.raises(ConnectionLost, match="if it speaks TLS, write rediss://"):
            await connect(plain, redis={"max_retries": 0}).send(task("x", 1))
        with pytest.raises(ConnectionLost, match="a server without TLS is redis://"):
            await connect(f"rediss://127.0.0.1:{made.server.port}", redis={"dial_timeout_s": 0.5}).send(task("x", 1))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"tls_ca_file": "/no/such/file.pem"}, "tls_ca_file.*cannot be used"),
        ({"tls_cert_file": "/no/such/file.pem"}, "tls_cert_file.*cannot be used"),
        ({"tls_key_file": "/no/such/file.pem"}, "needs redis.tls_cert_file"),
    ],
)
async def test_files_that_are_not_there_are_named(settings: dict[str, str], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        await connect("rediss://127.0.0.1:1", redis=settings).send(task("x", 1))
