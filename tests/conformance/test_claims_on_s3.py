"""Claim check with the contents on S3: the cases of the suite, and what only a server far away can do."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import pytest

import hivewire as hw
from hivewire.blobs.opening import open_blobs
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, ConnectionLost, SettingsError, TimedOut, Unsupported
from hivewire.testing.conformance import claims
from hivewire.testing.conformance.claims import LIMIT, _large
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.scenario import empty, number, serving, take, task
from hivewire.testing.proxy import Proxy
from hivewire.testing.servers import free_port

_START_S = 60.0

test_it_arrives_whole = claims.test_a_large_content_goes_by_reference_and_arrives_whole
test_it_is_kept = claims.test_it_is_kept_until_the_last_acknowledgement_is_stored
test_it_was_changed_or_lost = claims.test_a_content_that_was_changed_or_lost_is_a_dead_letter
test_it_outlives_a_worker = claims.test_a_worker_that_dies_takes_no_content_with_it
test_it_is_swept = claims.test_the_sweep_takes_what_nothing_refers_to_and_nothing_else


class S3Server:
    """moto: what it holds is gone with it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._folder / "s3.log"
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        deadline = time.monotonic() + _START_S
        while b"Running on" not in log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"moto did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bucket(self) -> str:
        """The setting `blobs` for a new bucket."""
        setting = f"s3://b{uuid4().hex}/contents/large?endpoint=http://127.0.0.1:{self.port}"
        self.make(setting)
        return setting

    def make(self, setting: str) -> None:
        client = boto3.session.Session().client("s3", endpoint_url=f"http://127.0.0.1:{self.port}")
        client.create_bucket(Bucket=urlsplit(setting).netloc)
        client.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture
async def member(fabric: Fabric, s3: S3Server) -> Engine:
    fabric.settings.update(blobs=s3.bucket(), claim_check_bytes=LIMIT)
    return await fabric.member()


class TestTheStore:
    """Without an engine."""

    async def test_more_names_than_one_call_takes(self, s3: S3Server) -> None:
        store = open_blobs(s3.bucket())
        names = [f"{n:011d}-{uuid4().hex}" for n in range(1_030)]
        for start in range(0, len(names), 8):
            await asyncio.gather(*(store.put(name, name.encode()) for name in names[start : start + 8]))
        assert sorted(await store.names()) == names
        assert await store.get(names[7]) == names[7].encode()
        await store.delete([*names[:1_020], "never-there"])
        assert sorted(await store.names()) == names[1_020:]
        assert await store.get(names[7]) is None
        await store.close()

    async def test_prefixes_do_not_see_each_other(self, s3: S3Server) -> None:
        setting = s3.bucket()
        stores = [open_blobs(setting.replace("contents/large", prefix)) for prefix in ("a", "ab", "")]
        for n, store in enumerate(stores):
            await store.put("same", str(n).encode())
        assert [await store.get("same") for store in stores] == [b"0", b"1", b"2"]
        assert await stores[0].names() == ["same"]
        await stores[0].delete(["same"])
        assert [await store.get("same") for store in stores] == [None, b"1", b"2"]
        for store in stores:
            await store.close()

    async def test_a_bucket_that_is_not_there_refuses_a_send_and_loses_no_message(self, s3: S3Server) -> None:
        store = open_blobs(f"s3://nobody-made-it?endpoint=http://127.0.0.1:{s3.port}")
        with pytest.raises(
            BackendError, match=r"store the content one in s3://nobody-made-it: .*NoSuchBucket"
        ) as refused:
            await store.put("one", b"x")
        assert not refused.value.retryable  # the sender is told at once
        with pytest.raises(ConnectionLost, match="NoSuchBucket"):  # the message waits
            await store.get("one")
        await store.close()

    async def test_what_is_set_up_wrongly_is_said_at_once(self, s3: S3Server) -> None:
        store = open_blobs(f"s3://not_a%20name?endpoint=http://127.0.0.1:{s3.port}")
        with pytest.raises(BackendError, match="Invalid bucket name") as refused:
            await store.put("one", b"x")
        assert not refused.value.retryable
        await store.close()

    async def test_without_credentials_it_says_which(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        store = open_blobs(f"s3://bucket?endpoint=http://127.0.0.1:{s3.port}")
        with pytest.raises(BackendError, match="set AWS_ACCESS_KEY_ID") as refused:
            await store.put("one", b"x")
        assert not refused.value.retryable
        await store.close()


async def test_a_server_that_is_away_is_waited_for(tmp_path: Path, s3: S3Server) -> None:
    setting = s3.bucket()
    got: list[int] = []

    async def handle(delivery: Delivery) -> None:
        got.append(number(delivery))

    async with Proxy(s3.port) as proxy:
        far = setting.replace(str(s3.port), str(proxy.port))
        async with hw.connect(f"sqlite:///{tmp_path}/hive.db", blobs=far, claim_check_bytes=LIMIT) as protocol:
            await protocol.send(_large("big", 1))
            await proxy.refuse()
            with pytest.raises(
                TimedOut, match=r"its content was not stored within 0.3 s: store the content .* in s3://"
            ):
                await protocol.send(_large("big", 2), timeout_s=0.3)
            sending = asyncio.create_task(protocol.send(_large("big", 3)))
            async with serving(protocol, "big", handle):
                await protocol.send(task("small", 4))  # who needs no content is not held up
                (small,) = await take(protocol, "small", 1)
                assert (number(small), got, sending.done()) == (4, [], False)
                await proxy.resume()
                await sending
                await empty(protocol, "big", within_s=30)
            assert got == [1, 3]
            assert (await protocol.depth("big")).dead == 0


@pytest.mark.parametrize(
    ("blobs", "why"),
    [
        ("s3://", "blobs is 's3://'"),
        ("s3:///prefix", "s3://BUCKET"),
        ("s3://bucket?endpoint=", "s3://BUCKET"),
        ("s3://bucket?acl=public", "s3://BUCKET"),
        ("s3://key:secret@bucket", "leave them out of s3://bucket"),
    ],
)
def test_what_names_no_bucket_is_refused(blobs: str, why: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(why)):
        open_blobs(blobs)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "hivewire.blobs.s3", raising=False)
    with pytest.raises(Unsupported, match=r"pip install 'hivewire\[s3\]'"):
        open_blobs("s3://bucket")
