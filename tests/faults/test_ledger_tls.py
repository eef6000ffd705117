"""PostgreSQL over TLS: the server is who it should be, or nothing is sent to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hivewire as hw
from hivewire.errors import BackendError
from hivewire.testing.postgres import PostgresServer
from tests.needed import needed


def certificate(folder: Path, name: str, host: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}",
         "-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[PostgresServer]:
    """One that speaks TLS, with the certificate of `localhost`."""
    own, key = certificate(folder, "localhost", "localhost")
    certificate(folder, "other", "localhost")
    made = PostgresServer(options=("ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key"))
    with needed():
        made.prepare()
    made.put("server.pem", own.read_bytes())
    made.put("server.key", key.read_bytes())
    with made:
        yield made


async def works(server: PostgresServer, host: str = "localhost", **postgres: str) -> bool:
    url = f"postgresql://tester@{host}:{server.port}/test"
    async with hw.open_ledger(url, migrate=True, postgres=postgres) as ledger:
        task = await ledger.create_task(hw.Task(name="t"))
        return await ledger.get_task(task.id) == task


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
async def test_the_right_server_is_taken(server: PostgresServer, folder: Path, mode: str) -> None:
    assert await works(server, ssl_mode=mode, ssl_root_cert=str(folder / "localhost.pem"))


@pytest.mark.processes
async def test_a_server_with_another_certificate_is_refused(server: PostgresServer, folder: Path) -> None:
    for mode in ("verify-ca", "verify-full"):
        with pytest.raises(BackendError, match="certificate verify failed"):
            await works(server, ssl_mode=mode, ssl_root_cert=str(folder / "other.pem"))
        with pytest.raises(BackendError, match="certificate verify failed"):
            await works(server, ssl_mode=mode)  # nobody in the system's list has signed it


@pytest.mark.processes
async def test_the_name_counts_with_verify_full(server: PostgresServer, folder: Path) -> None:
    root = str(folder / "localhost.pem")
    assert await works(server, "127.0.0.1", ssl_mode="verify-ca", ssl_root_cert=root)
    with pytest.raises(BackendError, match=r"IP address mismatch|doesn't match"):
        await works(server, "127.0.0.1", ssl_mode="verify-full", ssl_root_cert=root)


@pytest.mark.processes
async def test_a_server_without_tls_is_refused() -> None:
    with PostgresServer() as plain:
        for mode in ("require", "verify-ca", "verify-full"):
            with pytest.raises(BackendError, match="rejected SSL upgrade"):
                await works(plain, ssl_mode=mode)
        assert await works(plain, ssl_mode="prefer")
