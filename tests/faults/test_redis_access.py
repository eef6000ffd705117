"""Users of the access list: the one that the guide describes cannot touch what is not ours, and what a user may not do
is said by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivewire.backends.redis.address import Reply
from hivewire.backends.redis.link import Link
from hivewire.backends.redis.opening import new_link
from hivewire.errors import BackendError, SettingsError
from hivewire.factory import connect
from hivewire.settings import RedisSettings
from hivewire.settings.schema import Secret
from hivewire.testing.conformance.scenario import take, task
from hivewire.testing.servers import RedisServer
from tests.conformance.backends import least_rights, start


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    made = RedisServer(tmp_path / "redis", "--user", *least_rights("sesame"))
    start(made)
    yield made
    made.kill()


def user(server: RedisServer, **settings: object) -> RedisSettings:
    values = {"addr": f"127.0.0.1:{server.port}", "username": "hivewire", "password": Secret("sesame"), **settings}
    return RedisSettings(**values)  # type: ignore[arg-type]  # names and values of settings


async def answer(link: Link, *command: str) -> Reply:
    (said,) = await link.post((command,))
    return said


FORBIDDEN = """
GET other:x
SET other:x 1
XADD other:s * a b
DEL other:x
HGETALL hive
SMEMBERS multiagent:x
XREAD STREAMS other:s 0
ZUNIONSTORE hivewire:x 1 other:z
SINTERSTORE other:x 1 hivewire:s
RENAME hivewire:x other:x
COPY hivewire:x other:x
MIGRATE h 1 hivewire:x 0 1
SORT hivewire:x
PUBLISH other x
SUBSCRIBE other
KEYS *
SCAN 0
RANDOMKEY
FLUSHALL
FLUSHDB
SWAPDB 0 1
SELECT 1
CONFIG SET appendonly no
CONFIG REWRITE
SHUTDOWN
SAVE
REPLICAOF NO ONE
MONITOR
SCRIPT FLUSH
EVAL return 0
ACL LIST
ACL SETUSER x
CLIENT KILL TYPE normal
""".strip().splitlines()


async def test_the_user_of_the_guide_cannot_touch_what_is_not_ours(server: RedisServer) -> None:
    assert server.ask("SET", "other:x", "secret") == b"+OK"
    link = new_link(user(server))
    try:
        for command in FORBIDDEN:
            said = await answer(link, *command.split())
            assert isinstance(said, Exception), command
            assert str(said).startswith("NOPERM"), (command, said)
        script = "return redis.call('GET', 'other:x')"  # keys that a script does not declare are checked, too
        digest = await answer(link, "SCRIPT", "LOAD", script)
        said = await answer(link, "EVALSHA", digest.decode(), "1", "hivewire:x")
        assert isinstance(said, Exception)
        assert "user executing the script" in str(said) or "ACL failure" in str(said)
    finally:
        await link.close()
    assert server.ask("GET", "other:x") == b"$6"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"password": "wrong"}, "AUTH: WRONGPASS .*check redis.username and redis.password"),
        ({"username": "nobody"}, "AUTH: WRONGPASS"),
        ({"username": None}, "AUTH"),
    ],
)
async def test_a_wrong_user_or_password_is_one_sentence_at_once(
    server: RedisServer, settings: dict[str, str], match: str
) -> None:
    began = asyncio.get_running_loop().time()
    redis = {"username": "hivewire", "password": "sesame", **settings}
    with pytest.raises(BackendError, match=match) as caught:
        await connect(server.url, redis=redis).send(task("x", 1))
    assert not caught.value.retryable
    assert "sesame" not in str(caught.value)
    assert asyncio.get_running_loop().time() - began < 2


async def test_no_password_where_one_is_needed(server: RedisServer) -> None:
    assert server.ask("ACL", "SETUSER", "default", "resetpass", ">open") == b"+OK"
    with pytest.raises(BackendError, match=r"NOAUTH .*set redis.password \(REDIS_PASSWORD\)"):
        await connect(server.url).send(task("x", 1))


async def test_a_right_that_is_missing_is_named(server: RedisServer) -> None:
    assert server.ask("ACL", "SETUSER", "hivewire", "-publish") == b"+OK"
    url = server.url.replace("://", "://hivewire:sesame@")
    async with connect(url) as protocol:
        with pytest.raises(BackendError, match="must be allowed to do stands in docs/guides/redis"):
            await protocol.send(task("x", 1), timeout_s=5)


async def test_durability_is_unknown_to_who_may_not_ask(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    url = server.url.replace("://", "://hivewire:sesame@")
    assert server.ask("ACL", "SETUSER", "hivewire", "-config") == b"+OK"
    async with connect(url) as protocol:  # INFO tells half of it
        health = await protocol.health()
        assert (health.ok, health.durability) == (True, "process")
        assert "how often it syncs" in health.warnings[0]
    assert server.ask("ACL", "SETUSER", "hivewire", "-info") == b"+OK"
    async with connect(url) as protocol:
        health = await protocol.health()
        assert (health.ok, health.durability) == (True, "unknown")
        assert "does not tell whether it keeps messages" in health.warnings[0]
        assert "THIS REDIS MAY LOSE MESSAGES" in caplog.text
        await protocol.send(task("x", 1))
        await take(protocol, "x", 1)
    with pytest.raises(SettingsError, match="require_durable is set, but this store does not tell"):
        await connect(url, require_durable=True).send(task("x", 1))
