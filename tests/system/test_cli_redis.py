"""The commands on a real Redis, as a user gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hivewire.testing.servers import RedisServer
from tests.conformance.backends import start
from tests.system import on_a_server
from tests.system.commands import Hive

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", "--appendfsync", "no")
    start(server)
    yield server
    server.kill()


@pytest.fixture
def hive(server: RedisServer, tmp_path: Path) -> Hive:
    return Hive(tmp_path, server.url)


def test_the_demo_survives_its_kill(hive: Hive) -> None:
    on_a_server.the_demo_survives_its_kill(hive)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_load_test_keeps_the_promise(hive: Hive, processes: int) -> None:
    kill = ["--kill"] if processes > 1 else []
    ran = hive("loadtest", "--rate", "400", "--duration", "4s", "--processes", str(processes), *kill, "--json")
    assert ran.code == 0, ran.out + ran.err
    told = ran.json
    assert (told["sent"], told["confirmed"], told["lost"], told["out_of_order"]) == (1600, 1600, 0, 0)


def test_a_worker_a_request_a_dead_letter_and_its_story(hive: Hive) -> None:
    on_a_server.a_worker_a_request_a_dead_letter_and_its_story(hive)


def test_doctor_names_what_is_wrong(hive: Hive, tmp_path: Path) -> None:
    healthy = hive("doctor", "--json")
    assert healthy.code == 0, healthy.out
    assert {finding["check"]: finding["state"] for finding in healthy.json}["reachable"] == "ok"
    closed = RedisServer(tmp_path / "closed", "--requirepass", "sesame", "--appendonly", "no")
    start(closed)
    try:
        for url in (closed.url, closed.url.replace("://", "://:barley@")):
            ran = hive("doctor", "--json", protocol=url)
            assert ran.code == 1
            assert "redis.password" in {finding["check"]: finding["detail"] for finding in ran.json}["reachable"]
            refused = hive("send", "coder", "--text", "hello", protocol=url)
            assert refused.code == 2
            assert refused.is_one_sentence, refused.err
        loses = hive("doctor", "--json", protocol=closed.url.replace("://", "://:sesame@"))
        found = {finding["check"]: finding for finding in loses.json}
        assert found["durability"]["state"] == "warning"
        assert "appendonly is off" in found["store"]["detail"]
    finally:
        closed.kill()
    assert "Traceback" not in hive("doctor", protocol=closed.url).out
