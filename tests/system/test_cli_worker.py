"""`hivewire worker`: serving, stopping, crashing, in one process and in several."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.commands import Hive, Running, environment, wait_for_end

pytestmark = pytest.mark.processes

TEAM = """
import asyncio, os, time
from pathlib import Path
import hivewire as hw

echo = hw.Worker("echo")
slow = hw.Worker("slow", concurrency=2)
stuck = hw.Worker("stuck")
deadly = hw.Worker("deadly")
both = [echo, slow]
nothing = []
number = 7

@echo.on("task")
async def echo_it(message, ctx):
    return {"pid": os.getpid(), "said": message.content}

@slow.on("task")
async def take_time(message, ctx):
    print("begun", message.content, flush=True)
    await asyncio.sleep(message.content)
    print("done", message.content, flush=True)

@stuck.on("task")
def sleep_in_a_thread(message, ctx):
    print("begun", message.content, flush=True)
    time.sleep(600)

@deadly.on("task")
async def die(message, ctx):
    if Path("armed").exists():
        Path("armed").unlink()
        os._exit(9)
    print("survived", message.content, flush=True)
"""


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    hive = Hive(tmp_path)
    hive.module("team", TEAM)
    return hive


def test_a_worker_of_the_current_folder_answers(hive: Hive) -> None:
    with hive.running("worker", "team:echo") as worker:
        worker.until("serving echo")
        reply = hive("send", "echo", "--content", '{"n": 1}', "--wait", "20s", "--json")
        assert reply.code == 0, reply.err
        assert reply.json["content"] == {"pid": worker.process.pid, "said": {"n": 1}}


def test_a_module_that_runs_its_workers_itself_is_served_by_the_command(hive: Hive) -> None:
    hive.module("itself", TEAM + "\nhw.run(echo)\n")
    with hive.running("worker", "itself:echo") as worker:
        worker.until("serving echo")
        reply = hive("send", "echo", "--content", "5", "--wait", "20s", "--json")
        assert reply.json["content"]["said"] == 5
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_a_list_and_several_references(hive: Hive) -> None:
    with hive.running("worker", "team:both", "team:deadly") as worker:
        assert worker.until(r"serving (.*)") == ["echo, slow, deadly"]
        worker.signal(signal.SIGINT)
        assert worker.wait() == 0


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("nowhere:coder", "no module 'nowhere'"),
        ("team:ecoh", "did you mean 'echo'?"),
        ("team:number", "is of type int, not a Worker"),
        ("team:nothing", "empty list"),
        ("team", "module:name"),
        ("broken:coder", "SyntaxError"),
        ("failing:coder", "ZeroDivisionError: division by zero"),
        ("needy:coder", "No module named 'not_installed'"),
        ("leaving:coder", "SystemExit: 7"),
        ("idle:coder", "worker idle has no handler"),
        ("spaced:coder", "'a b' can not name an agent"),
        ("../team:echo", "module:name"),
    ],
)
@pytest.mark.parametrize("processes", [[], ["--processes", "2"]])
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(
    hive: Hive, reference: str, says: str, processes: list[str]
) -> None:
    hive.module("broken", "def :\n")
    hive.module("failing", "1 / 0\n")
    hive.module("needy", "import not_installed\n")
    hive.module("leaving", "raise SystemExit(7)\n")
    hive.module("idle", "import hivewire as hw\ncoder = hw.Worker('idle')\n")
    hive.module("spaced", "import hivewire as hw\ncoder = hw.Worker('a b')\n")
    ran = hive("worker", reference, *processes)
    assert ran.code == 2, ran.err
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert processes or ran.is_one_sentence


def test_memory_cannot_be_shared_by_processes(hive: Hive) -> None:
    ran = hive("worker", "team:echo", "--processes", "2", protocol="memory://")
    assert (ran.code, ran.is_one_sentence) == (2, True)
    assert "one process" in ran.err


@pytest.mark.parametrize("option", [["--processes", "0"], ["--grace", "soon"], ["--protocol", "pigeon"]])
def test_a_wrong_option_is_one_sentence(hive: Hive, option: list[str]) -> None:
    ran = hive("worker", "team:echo", *option, protocol="" if option[0] == "--protocol" else None)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]])
def test_sigterm_lets_what_runs_finish(hive: Hive, processes: list[str]) -> None:
    with hive.running("worker", "team:slow", *processes) as worker:
        worker.until("serving")
        hive("send", "slow", "--content", "1.5")
        worker.until("begun 1.5")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.seen
    assert "done 1.5" in worker.seen
    assert hive("queues", "slow", "--json").json[0]["ready"] == 0


def test_what_takes_longer_than_the_grace_time_is_given_back(hive: Hive) -> None:
    with hive.running("worker", "team:slow", "--grace", "500ms") as worker:
        worker.until("serving")
        hive("send", "slow", "--content", "600")
        worker.until("begun")
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.seen
        assert time.monotonic() - began < 8
    row = hive("queues", "slow", "--json").json[0]
    assert (row["ready"] + row["scheduled"], row["in_flight"], row["dead"]) == (1, 0, 0)


@pytest.mark.parametrize(("agent", "processes"), [("slow", []), ("stuck", []), ("slow", ["--processes", "2"])])
def test_a_second_signal_ends_at_once(hive: Hive, agent: str, processes: list[str]) -> None:
    with hive.running("worker", f"team:{agent}", "--grace", "60s", *processes) as worker:
        worker.until("serving", times=2 if processes else 1)
        hive("send", agent, "--content", "600")
        worker.until("begun")
        worker.signal(signal.SIGTERM)
        worker.until("60 s")
        time.sleep(0.3)  # two signals at the same moment count as one
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 3
        assert "second signal" in worker.seen


@pytest.mark.parametrize("processes", [[], ["--processes", "1"]])
def test_the_same_signal_twice_at_once_is_one(hive: Hive, processes: list[str]) -> None:
    with hive.running("worker", "team:slow", *processes) as worker:
        worker.until("serving")
        hive("send", "slow", "--content", "1")
        worker.until("begun")
        worker.signal(signal.SIGINT)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.seen
        assert "done 1" in worker.seen


@pytest.mark.slow
def test_a_thread_that_never_ends_does_not_keep_the_process(hive: Hive) -> None:
    with hive.running("worker", "team:stuck", "--grace", "200ms", "--processes", "1") as worker:
        worker.until("serving")
        hive("send", "stuck", "--content", "1")
        worker.until("begun")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1, worker.seen
        assert "still running after the grace time" in worker.seen
        assert "process 1 ended with exit code 1" in worker.seen


def test_a_killed_process_is_replaced(hive: Hive) -> None:
    with hive.running("worker", "team:echo", "--processes", "2") as worker:
        worker.until("is ready pid=", times=2)
        first = int(worker.seen.split("started pid=")[1].split()[0])
        os.kill(first, signal.SIGKILL)
        worker.until(r"process \d was killed by SIGKILL; starting another in 0.25 s")
        (replacement,) = worker.until(r"is ready pid=(\d+)")
        assert int(replacement) != first
        assert hive("send", "echo", "--wait", "30s").code == 0
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.seen
        assert "all processes have stopped" in worker.seen


def test_a_message_whose_handler_killed_the_process_is_handled_by_the_next(hive: Hive) -> None:
    (hive.folder / "armed").touch()
    with hive.running("worker", "team:deadly", "--processes", "1", HIVEWIRE_LEASE_S="1s") as worker:
        worker.until("serving")
        hive("send", "deadly", "--text", "boo")
        worker.until("ended with exit code 9; starting another in")
        worker.until("survived boo")


def test_a_crash_loop_backs_off(hive: Hive) -> None:
    hive.module("doomed", "import os\nos._exit(3)\n")
    with hive.running("worker", "doomed:worker", "--processes", "1") as worker:
        assert worker.until(r"exit code 3; starting another in (\S+) s", times=4) == ["0.25", "0.5", "1", "2"]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.seen


def test_no_child_outlives_a_supervisor_that_is_killed(hive: Hive) -> None:
    with hive.running("worker", "team:echo", "--processes", "3", "--grace", "1s") as worker:
        children = [int(pid) for pid in worker.until(r"is ready pid=(\d+)", times=3)]
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        assert all(wait_for_end(child, within_s=10) for child in children)


def test_a_child_that_still_starts_does_not_outlive_its_supervisor(hive: Hive) -> None:
    hive.module("slow_start", "import time\nprint('importing', flush=True)\ntime.sleep(2)\nfrom team import echo\n")
    with hive.running("worker", "slow_start:echo", "--processes", "1", "--grace", "1s") as worker:
        (child,) = worker.until(r"started pid=(\d+)")
        worker.until("importing")
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        assert wait_for_end(int(child), within_s=10)


def test_a_store_that_is_locked_at_the_start_is_tried_again(hive: Hive) -> None:
    hive("send", "echo")
    with closing(sqlite3.connect(hive.folder / "hive.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with hive.running("worker", "team:echo", "--processes", "1") as worker:
            worker.until("holds its write lock")
            worker.until("ended with exit code 75; starting another in 0.25 s")
            blocker.execute("ROLLBACK")
            worker.until("is ready")
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0, worker.seen


@pytest.mark.parametrize("command", [["queues", "--watch", "100ms"], ["tail", "echo", "--every", "100ms"]])
def test_ctrl_c_ends_what_watches(hive: Hive, command: list[str]) -> None:
    hive("send", "echo")
    with hive.running(*command) as watching:
        watching.until("echo|ready")
        watching.signal(signal.SIGINT)
        assert watching.wait() == 130
        assert "Traceback" not in watching.seen


def test_a_program_goes_on_after_hw_run(hive: Hive) -> None:
    """Past the time at which a process that does not stop is ended."""
    program = (
        "import sys, time\nimport hivewire as hw\nfrom hivewire.coordination import serving\nfrom team import echo\n"
        "serving.CLOSING_S = 0.2\nhw.run(echo, grace_s=0.2)\nprint('over', flush=True)\ntime.sleep(1)\nsys.exit(7)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=hive.folder,
        env=environment(HIVEWIRE_URL=hive.protocol, HIVEWIRE_LOG="info"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    running = Running(process)
    try:
        assert hive("send", "echo", "--text", "hello", "--wait", "20s").code == 0  # it serves
        running.signal(signal.SIGTERM)
        running.until("over")
        assert running.wait() == 7, running.seen
    finally:
        running.end()


def test_hw_run_in_a_program_of_ones_own_stops_as_cleanly(hive: Hive) -> None:
    hive.module("program", "import hivewire as hw\nfrom team import slow\nprint('up', flush=True)\nhw.run(slow)\n")
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=hive.folder,
        env=environment(HIVEWIRE_URL=hive.protocol),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    program = Running(process)
    try:
        program.until("up")
        hive("send", "slow", "--content", "0.5")
        program.until("begun")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0, program.seen
        assert "done 0.5" in program.seen
    finally:
        program.end()
