"""The commands on a real Kafka, as a user gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import uuid4

import pytest

from hivewire.testing.servers import free_port
from tests.conformance.kafka_fabric import broker
from tests.system.commands import Hive

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(240)]

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "run-a-team.md"

CODER = """
import hivewire as hw

coder = hw.Worker("coder", concurrency=4)

@coder.on("task", retry=hw.Retry(max_attempts=2, first_s=0.05, most_s=0.05))
async def write(task, ctx):
    if task.content.get("bad"):
        raise ValueError("cannot do this")
    return {"done": task.content["n"]}
"""


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    prefix = f"c{uuid4().hex[:10]}"
    return Hive(tmp_path, f"{broker().url}?topic_prefix={prefix}&group_id={prefix}")


def test_the_demo_survives_its_kill(hive: Hive) -> None:
    ran = hive("demo")
    assert ran.code == 0, ran.out + ran.err
    assert "killed worker process" in ran.out
    assert "lost 0, duplicates 0" in ran.out
    assert "counted again in 20 files: equal in each" in ran.out


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
    hive.module("mymodule", CODER)
    with hive.running("worker", "mymodule:coder") as worker:
        worker.until("serving coder")
        asked = hive("send", "coder", "--content", '{"n": 7}', "--type", "task", "--wait", "30s")
        assert asked.code == 0, asked.err
        assert json.loads(asked.out) == {"done": 7}
        assert hive("send", "coder", "--content", '{"bad": 1}', "--type", "task").code == 0
        letters: list[dict[str, object]] = []
        while not letters:
            letters = hive("dead", "list", "--json").json
        (letter,) = letters
        assert (letter["reason"], letter["attempts"]) == ("max_attempts", 2)
        assert "ValueError: cannot do this" in hive("dead", "show", str(letter["id"])).out
        story = hive("explain", str(letter["id"])).out
        assert "attempt 1 failed: ValueError: cannot do this" in story
        assert "is a dead letter of coder" in story
        assert hive("dead", "replay", str(letter["id"])).out == "replayed 1\n"
        while hive("dead", "list", "--json").json == []:
            pass
        assert hive("dead", "purge", "--all", "--yes").code == 0
        (row,) = [row for row in hive("queues", "--json").json if row["agent"] == "coder"]
        assert (row["ready"], row["in_flight"], row["dead"], row["mode"]) == (0, 0, 0, "ordered")


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
