"""The commands on a real Kafka, as a user gives them."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import uuid4

import pytest

from hivewire.testing.servers import free_port
from tests.conformance.kafka_fabric import broker
from tests.system import on_a_server
from tests.system.commands import Hive

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(240)]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "run-a-team.md"


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    prefix = f"c{uuid4().hex[:10]}"
    return Hive(tmp_path, f"{broker().url}?topic_prefix={prefix}&group_id={prefix}")


def test_the_demo_survives_its_kill(hive: Hive) -> None:
    on_a_server.the_demo_survives_its_kill(hive)


def test_a_team_does_a_task_by_a_plan(hive: Hive) -> None:
    blocks = dict(reversed(re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)))
    hive.module("words", blocks["python"])
    (hive.folder / "plan.json").write_text(blocks["json"])
    (hive.folder / "0.txt").write_text("one two\n" * 10)
    command = blocks["sh"].split()[1:]
    ran = hive(*[part for part in command if part != "*.txt"], "0.txt")
    assert ran.code == 0, ran.out + ran.err
    assert "checked: 20 words in all" in ran.out


def test_a_load_test_with_a_kill_keeps_the_promise(hive: Hive) -> None:
    ran = hive("loadtest", "--rate", "200", "--duration", "5s", "--processes", "2", "--kill", "--json")
    assert ran.code == 0, ran.out + ran.err
    told = ran.json
    assert (told["sent"], told["confirmed"], told["lost"], told["out_of_order"]) == (1000, 1000, 0, 0)


def test_a_worker_a_request_a_dead_letter_and_its_story(hive: Hive) -> None:
    on_a_server.a_worker_a_request_a_dead_letter_and_its_story(hive)


def test_doctor_names_what_is_wrong(hive: Hive) -> None:
    healthy = hive("doctor", "--json", HIVEWIRE_KAFKA_REQUIRE_ACKS="1")
    assert healthy.code == 0, healthy.out
    found = {finding["check"]: finding for finding in healthy.json}
    assert found["reachable"]["state"] == "ok"
    assert "acks=1" in found["store"]["detail"]
    nobody = f"kafka://127.0.0.1:{free_port()}"
    ran = hive("doctor", protocol=nobody)
    assert ran.code == 1
    assert "Traceback" not in ran.out + ran.err
    refused = hive("send", "coder", "--text", "hello", protocol=nobody)
    assert refused.code == 2
    assert refused.is_one_sentence, refused.err
    wrong = hive("doctor", HIVEWIRE_KAFKA_SASL_MECHANISM="PLAIN")
    assert wrong.code == 1
    assert "kafka.username" in wrong.out
