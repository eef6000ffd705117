"""`hivewire run` and `hivewire demo` with real processes, of which some are killed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.system.commands import Hive, Ran, environment, wait_for_end
from tests.system.journal import Journal, subtask

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]
LEASE = {"HIVEWIRE_LEASE_S": "2"}
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "run-a-team.md"
RUN = ("run", "--plan", "plan.json", "--team", "journalled:TEAM")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path)
    yield made
    made.close()


@pytest.fixture
def hive(tmp_path: Path) -> Iterator[Hive]:
    yield Hive(tmp_path)
    (tmp_path / "go").touch()
    left = processes_of(tmp_path)
    assert all(wait_for_end(pid, within_s=20) for pid in left), "a process has outlived its run"


def processes_of(folder: Path) -> list[int]:
    """The processes that were started for this folder and still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended while we looked
            continue
    return found


def hivewire(hive: Hive, *args: str) -> Ran:
    """The command with its own default protocol."""
    return hive(*args, protocol="", **LEASE)


class Running:
    """`hivewire run` in the background; its output is read at the end."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hivewire", *args],
            cwd=folder,
            env=environment(**LEASE),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> Ran:
        out, err = self.process.communicate(timeout=60)
        return Ran(self.process.returncode, out, err)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def recorded(folder: Path) -> set[str]:
    """The subtasks whose results the ledger has."""
    found: set[str] = set()
    for file in folder.rglob("ledger.db"):
        with closing(sqlite3.connect(file)) as db:
            found.update(name for (name,) in db.execute("SELECT name FROM run_subtasks WHERE status = 'done'"))
    return found


def chain(count: int, **input_: Any) -> list[dict[str, Any]]:
    return [subtask(f"s{n}", *([f"s{n - 1}"] if n else []), **input_) for n in range(count)]


# The bundled team.


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Real text in files and folders, and how many lines it has."""
    from hivewire.teams.logs.sample import write_sample

    folder = tmp_path_factory.mktemp("logs")
    sample = write_sample(folder, lines=150_000, seed=7)
    return folder, sum(sample.lines.values())


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_the_demo_survives_a_kill_and_its_totals_add_up(hive: Hive, logs: tuple[Path, int], protocol: str) -> None:
    folder, lines = logs
    ran = hive("demo", "--json", "--input", str(folder), "--out", "out", protocol=protocol)
    assert ran.code == 0, ran.err
    told = ran.json
    assert (told["status"], told["lost"]) == ("done", 0)
    assert told["done"] == told["subtasks"] >= 5
    assert told["kills"] >= 1
    assert told["redelivered"] >= 1
    assert told["takeover_s"] <= 4.0  # lease + 2 s
    assert "SIGKILL" in ran.err or protocol
    report = json.loads(Path(told["reports"]["report.json"]).read_text())
    assert report["facts"]["lines"] == lines
    assert Path(told["reports"]["report.md"]).exists()
    assert Path(told["reports"]["report.html"]).exists()
    assert "Traceback" not in ran.err


def test_the_demo_without_chaos_kills_nobody_and_prints_no_colours_into_a_pipe(
    hive: Hive, logs: tuple[Path, int]
) -> None:
    ran = hivewire(hive, "demo", "--no-chaos", "--input", str(logs[0]), "--processes", "1")
    assert ran.code == 0, ran.err
    assert re.search(r"messages sent \d+, redelivered 0, lost 0, duplicates 0, no kill", ran.out)
    assert "\x1b" not in ran.out
    assert not ran.err
    assert sorted(path.name for path in hive.folder.iterdir()) == ["hivewire-demo"]


def test_on_a_terminal_the_lines_are_written_over(hive: Hive, journal: Journal) -> None:
    journal.plan(*chain(3))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "hivewire", *RUN], cwd=hive.folder, env=environment(TERM="xterm"), stdout=theirs
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last one who had it open is gone
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[1A\x1b[J" in seen
    assert b"done: 3 of 3 subtasks" in seen.splitlines()[-2]


def test_the_demo_whose_coordinator_is_killed_goes_on_and_its_totals_add_up(hive: Hive, logs: tuple[Path, int]) -> None:
    folder, lines = logs
    demo = ("demo", "--input", str(folder))
    running = Running(hive.folder, *demo)
    assert running.process.stdout is not None
    while "killed worker process" not in running.process.stdout.readline():
        pass
    running.kill()
    ran = hivewire(hive, *demo, "--no-chaos", "--resume", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["lost"] == 0
    assert json.loads(Path(ran.json["reports"]["report.json"]).read_text())["facts"]["lines"] == lines


# Kills and stops.


def test_a_killed_worker_is_replaced_and_its_subtask_is_done_by_another(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a", waits=True), *[subtask(f"s{n}") for n in range(6)], subtask("last", "a", "s*"))
    running = Running(hive.folder, *RUN, "--json", "--processes", "2", "--protocol", f"sqlite:///{hive.folder}/m.db")
    os.kill(journal.until_start("a"), signal.SIGKILL)
    journal.let_go()
    ran = running.end()
    journal.rest()
    assert ran.code == 0, ran.err
    assert ran.json["lost"] == 0
    assert ran.json["redelivered"] >= 1
    assert "was killed by SIGKILL; starting another" in ran.err
    assert journal.starts.count("a") == 2
    assert journal.ends.count("a") == 1
    assert journal.ends.count("last") == 1


@pytest.mark.parametrize("at", [0, 1, 3, 5, 8, 11])
def test_a_killed_coordinator_goes_on_and_finished_work_is_not_done_again(
    hive: Hive, journal: Journal, at: int
) -> None:
    makes = [subtask(f"made-{n}", "s1") for n in range(4)]
    plan = chain(6)
    plan[1]["input"] = {"makes": makes}
    journal.plan(*plan, subtask("last", "made-*", "s5"))
    running = Running(hive.folder, *RUN)
    while len(journal.ends) < at:
        journal.next()
    running.kill()
    finished = recorded(hive.folder)
    ran = hivewire(hive, *RUN, "--json", *(["--resume"] if at else []))
    journal.rest()
    if at == 11 and "no unfinished run" in ran.err:
        pass  # the kill came after the end
    else:
        assert ran.code == 0, ran.err
        assert (ran.json["done"], ran.json["subtasks"]) == (11, 11)
    ends = Counter(journal.ends)
    assert set(ends) == {*(f"s{n}" for n in range(6)), *(f"made-{n}" for n in range(4)), "last"}
    assert len(finished) >= at - 5, "no more are under way at once"
    assert {name: ends[name] for name in finished} == dict.fromkeys(finished, 1)
    # A handler that has ended is not finished: the kill may have come before its result was stored.
    assert max(ends.values()) <= 2


def test_a_coordinator_killed_again_and_again_still_finishes(hive: Hive, journal: Journal) -> None:
    journal.plan(*chain(30))
    again: tuple[str, ...] = ()
    for at in (2, 5, 6, 10, 15):
        running = Running(hive.folder, *RUN, *again)
        while len(journal.ends) < at:
            journal.next()
        running.kill()
        finished = recorded(hive.folder)
        again = ("--resume",)
    ran = hivewire(hive, *RUN, *again)
    journal.rest()
    assert ran.code == 0, ran.err
    assert list(dict.fromkeys(journal.ends)) == [f"s{n}" for n in range(30)]
    assert len(finished) >= 13
    assert len(journal.ends) <= 30 + 5, "each kill may cost the one that was under way, whose result was not stored"


def test_all_workers_may_be_killed_at_once(hive: Hive, journal: Journal) -> None:
    journal.plan(*[subtask(f"s{n}", waits=True) for n in range(3)], subtask("last", "s*"))
    running = Running(hive.folder, *RUN, "--json", "--processes", "3")
    for _ in range(3):
        journal.next()
    for pid in journal.pids.values():
        os.kill(pid, signal.SIGKILL)
    journal.let_go()
    ran = running.end()
    journal.rest()
    assert ran.code == 0, ran.err
    assert ran.json["redelivered"] == 3
    assert sorted(journal.ends) == ["last", "s0", "s1", "s2"]


def test_a_replacement_that_cannot_start_does_not_end_a_run_that_others_carry_on(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a", waits=True), subtask("b", waits=True), subtask("last", "a", "b"))
    text = (hive.folder / "journalled.py").read_text()
    running = Running(hive.folder, *RUN, "--processes", "2")
    pids = {(told := journal.next())["start"]: told["pid"] for _ in range(2)}
    hive.module("journalled", "1 / 0")
    os.kill(pids["a"], signal.SIGKILL)
    assert running.process.stdout is not None
    while "ended with exit code" not in running.process.stdout.readline():
        pass
    hive.module("journalled", text)
    journal.let_go()
    ran = running.end()
    assert ran.code == 0, ran.err


def test_workers_end_when_their_coordinator_is_killed(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a", waits=True), subtask("b", waits=True))
    running = Running(hive.folder, *RUN, "--processes", "2")
    pids = {journal.next()["pid"], journal.next()["pid"]}
    assert len(pids) == 2
    running.kill()
    journal.let_go()
    assert all(wait_for_end(pid, within_s=20) for pid in pids)


def test_ctrl_c_drains_says_how_to_go_on_and_going_on_works(hive: Hive, journal: Journal) -> None:
    journal.plan(*chain(3), subtask("slow", "s2", waits=True), subtask("last", "slow"))
    running = Running(hive.folder, *RUN)
    pid = journal.until_start("slow")
    running.process.send_signal(signal.SIGINT)
    journal.let_go()
    ran = running.end()
    assert ran.code == 130
    assert "subtasks are done; start it again to go on" in ran.out
    assert wait_for_end(pid, within_s=0)
    again = hivewire(hive, *RUN)
    journal.rest()
    assert again.code == 0, again.err
    assert "going on with run" in again.out
    assert sorted(journal.starts) == sorted(["s0", "s1", "s2", "slow", "last"])


def test_a_second_ctrl_c_ends_at_once(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("stuck", waits=True))
    running = Running(hive.folder, *RUN, "--grace", "60s")
    pid = journal.until_start("stuck")
    running.process.send_signal(signal.SIGINT)
    assert running.process.stdout is not None
    while "stopping" not in running.process.stdout.readline():
        pass
    running.process.send_signal(signal.SIGINT)
    ran = running.end()
    assert ran.code == 130
    assert wait_for_end(pid, within_s=0)


def test_a_deadline_ends_the_run_and_says_so(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a"), subtask("stuck", "a", waits=True))
    ran = hivewire(hive, *RUN, "--deadline", "3s", "--grace", "500ms")
    assert ran.code == 1
    assert "failed: the run did not end within 3.0 s" in ran.out
    listed = hivewire(
        hive, "queues", "--protocol", f"sqlite:///{hive.folder}/hivewire-out/hivewire/messages.db", "--json"
    )
    assert listed.code == 0, listed.err
    assert not [queue for queue in json.loads(listed.out) if queue["agent"].startswith("run-")]


# Which run, and refusals.


def test_new_starts_anew_and_another_plan_must_be_asked_for(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a"), subtask("stuck", "a", waits=True))
    running = Running(hive.folder, *RUN)
    journal.until_start("stuck")
    running.kill()
    journal.plan(subtask("b"))
    refused = hivewire(hive, *RUN)
    assert refused.code == 2
    assert "another plan or input" in refused.err
    assert hivewire(hive, *RUN, "--resume").code == 2
    journal.let_go()
    ran = hivewire(hive, *RUN, "--new", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["subtasks"] == 1
    done = hivewire(hive, *RUN, "--resume")
    assert done.code == 2
    assert "no unfinished run" in done.err


def test_the_environment_may_say_where_the_messages_are(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a"))
    ran = hive(*RUN, protocol="", HIVEWIRE_URL="sqlite:///elsewhere.db")
    assert ran.code == 0, ran.err
    assert "messages: sqlite, by the URL in the environment variable HIVEWIRE_URL" in ran.out
    assert (hive.folder / "elsewhere.db").exists()
    assert not list(hive.folder.glob("hivewire-out/hivewire/messages.db*"))
    memory = hive(*RUN, protocol="", PROTOCOL_TYPE="inmemory")
    assert "in this process's memory" in memory.out


def test_two_runs_do_not_share_a_folder(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("a", waits=True))
    running = Running(hive.folder, *RUN)
    journal.until_start("a")
    second = hivewire(hive, *RUN)
    journal.let_go()
    assert running.end().code == 0
    assert second.code == 2
    assert f"process {running.process.pid}" in second.err


def test_a_failed_subtask_ends_the_command_with_1_and_what_there_is(hive: Hive, journal: Journal) -> None:
    journal.plan(subtask("bad", fails=True), subtask("after", "bad"), subtask("good"))
    ran = hivewire(hive, *RUN, "--json")
    assert ran.code == 1
    assert "ValueError: as it was told" in ran.json["failed"]["bad"]
    assert ran.json["skipped"] == ["after"]
    assert (ran.json["status"], ran.json["done"], ran.json["lost"]) == ("failed", 1, 0)


BAD = [
    (["--plan", "ghost.json"], "the plan ghost.json cannot be read"),
    (["--plan", "text.txt"], "not JSON"),
    (["--plan", "cycle.json"], 'a cycle: "a" → "b" → "a"'),
    (["--plan", "fly.json"], 'no worker has the capability "fly" (known: work)'),
    (["--team", "ghost:TEAM"], "there is no module 'ghost'"),
    (["--team", "journalled:TEEM"], "did you mean 'TEAM'"),
    (["--team", "journalled"], "is not module:name"),
    (["--team", "journalled:HERE"], "not a Worker"),
    (["--team", "broken:TEAM"], "broken cannot be imported"),
    (["--team", "childish:TEAM"], "the worker processes cannot start"),
    (["--input", "ghost-*.log"], "there is no such file"),
    (["--out", "text.txt"], "cannot make the folder"),
    (["--protocol", "carrier-pigeon"], "neither a URL nor one of"),
    (["--protocol", "redis://localhost:1"], "connect to localhost:1"),
    (["--processes", "0"], "not a whole number above 0"),
    (["--resume", "--new"], "not allowed with"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input_gets_one_sentence_and_2(hive: Hive, journal: Journal, number: int) -> None:
    options, reason = BAD[number]
    journal.plan(subtask("a"))
    journal.plan(subtask("a", "b"), subtask("b", "a"), name="cycle.json")
    journal.plan({"name": "a", "assigned_to": "fly"}, name="fly.json")
    (hive.folder / "text.txt").write_text("some text")
    hive.module("broken", "1 / 0")
    hive.module(
        "childish", "import sys\nassert 'team_process' not in sys.argv[0], 'not here'\nfrom journalled import *"
    )
    ran = hivewire(hive, *RUN, *options)
    assert ran.code == 2
    assert reason in ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") == 1
    began = any(text in reason for text in ("fly", "cannot start", "localhost:1"))
    assert (hive.folder / "hivewire-out").exists() == began


def test_the_team_of_the_guide_runs_in_a_fresh_folder(hive: Hive) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    code = next(text for kind, text in blocks if kind == "python")
    (hive.folder / "words.py").write_text(code)
    (hive.folder / "plan.json").write_text(next(text for kind, text in blocks if kind == "json"))
    for number in range(3):
        (hive.folder / f"{number}.txt").write_text(f"one two {number}\n" * 10)
    command = next(text for kind, text in blocks if kind == "sh").split()
    assert command[0] == "hivewire"
    ran = hivewire(hive, *[part for part in command[1:] if part != "*.txt"], "0.txt", "1.txt", "2.txt")
    assert ran.code == 0, ran.err
    assert "checked: 90 words in all" in ran.out
    assert (hive.folder / "hivewire-out" / "words.txt").read_text().splitlines()[:2] == ["30 one", "30 two"]
