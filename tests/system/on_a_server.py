"""What the commands do on each server, as a user gives them."""

from __future__ import annotations

import json
import re

from tests.system.commands import Hive

CODER = """
import hivewire as hw

coder = hw.Worker("coder", concurrency=4)

@coder.on("task", retry=hw.Retry(max_attempts=2, first_s=0.05, most_s=0.05))
async def write(task, ctx):
    if task.content.get("bad"):
        raise ValueError("cannot do this")
    return {"done": task.content["n"]}
"""


def the_demo_survives_its_kill(hive: Hive) -> None:
    ran = hive("demo")
    assert ran.code == 0, ran.out + ran.err
    assert "killed worker process" in ran.out
    assert "lost 0, duplicates 0" in ran.out
    (files,) = re.findall(r"are there, end to end over ([\d,]+) files", ran.out)  # those that may be read here
    assert f"counted again in {files} files: equal in each" in ran.out


def a_worker_a_request_a_dead_letter_and_its_story(hive: Hive) -> None:
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
        story = ""
        while "attempt 1 failed: ValueError: cannot do this" not in story:  # the worker writes its notes once a second
            story = hive("explain", str(letter["id"])).out
        assert "is a dead letter of coder" in story
        assert hive("dead", "replay", str(letter["id"])).out == "replayed 1\n"
        while hive("dead", "list", "--json").json == []:
            pass
        assert hive("dead", "purge", "--all", "--yes").code == 0
        (row,) = [row for row in hive("queues", "--json").json if row["agent"] == "coder"]
        assert (row["ready"], row["in_flight"], row["dead"], row["lost"], row["mode"]) == (0, 0, 0, 0, "ordered")
