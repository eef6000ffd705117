"""`hivewire doctor` and `hivewire config`."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hivewire.cli.doctor import file_system_of
from tests.system.commands import Hive


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


def _findings(hive: Hive, code: int, protocol: str | None = None) -> dict[str, dict[str, str]]:
    ran = hive("doctor", "--json", protocol=protocol)
    assert ran.code == code, ran.out + ran.err
    return {row["check"]: row for row in ran.json}


def test_a_healthy_file_is_green(hive: Hive) -> None:
    hive("send", "coder")
    found = _findings(hive, 0)
    assert {name: row["state"] for name, row in found.items()}["reachable"] == "ok"
    assert found["durability"]["detail"].startswith("disk")
    assert "agents: 1, messages that wait: 1" in found["queues"]["detail"]
    assert "SQLite" in found["versions"]["detail"]
    plain = hive("doctor")
    assert plain.code == 0
    assert all(line.split()[0] in ("ok", "warn") for line in plain.out.splitlines())


def test_memory_is_a_warning(hive: Hive) -> None:
    assert _findings(hive, 0, "memory://")["durability"]["state"] == "warning"


@pytest.mark.parametrize(
    ("target", "check"),
    [
        ("sqlite:////no/such/folder/x.db", "folder"),
        ("sqlite:///poem.db", "reachable"),
        ("redis://localhost:1/0", "reachable"),
        ("pigeon://x", "settings"),
    ],
)
def test_what_is_broken_is_red(hive: Hive, target: str, check: str) -> None:
    (hive.folder / "poem.db").write_text("not a database, but long enough to look like a file of some kind" * 100)
    assert _findings(hive, 1, target)[check]["state"] == "bad"


def test_a_process_that_sits_on_the_write_lock_is_named(hive: Hive) -> None:
    hive("send", "coder")
    hold = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(hive.folder / "hive.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        os.kill(holder.pid, signal.SIGSTOP)
        found = _findings(hive, 1)
        assert any(row["state"] == "bad" and str(holder.pid) in row["detail"] for row in found.values()), found
    finally:
        holder.kill()
        holder.communicate()


async def test_dead_letters_and_an_old_backlog_are_mentioned(hive: Hive) -> None:
    import hivewire as hw

    async with hw.connect(hive.protocol) as protocol:
        await protocol.send(hw.Message(type="task", sender="me", to="coder"))
        (delivery,) = await protocol.receive("coder", limit=1)
        await delivery.reject("no")
    assert "1, most of them (1) of coder" in _findings(hive, 0)["dead letters"]["detail"]


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines = [
        "rootfs / rootfs rw 0 0",
        "/dev/sda / ext4 rw 0 0",
        r"srv:/x /my\040data nfs4 rw 0 0",
        "tmp /my tmpfs rw 0 0",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    assert file_system_of(Path("/home/me"), mounts) == "ext4"
    assert file_system_of(Path("/my data/hive"), mounts) == "nfs4"
    assert file_system_of(Path("/my/data"), mounts) == "tmpfs"
    assert file_system_of(Path("/"), tmp_path / "missing") == ""


def test_the_settings_and_their_sources(hive: Hive) -> None:
    (hive.folder / "hivewire.toml").write_text("max_attempts = 7\n")
    ran = hive("config", "--json", HIVEWIRE_LEASE_S="3s")
    assert ran.code == 0, ran.err
    rows = {row["setting"]: row for row in ran.json}
    assert (rows["lease_s"]["value"], rows["max_attempts"]["value"]) == (3, 7)
    assert "HIVEWIRE_LEASE_S" in rows["lease_s"]["source"]
    assert "hivewire.toml" in rows["max_attempts"]["source"]
    assert rows["retry_most_s"]["source"] == "default"
    changed = hive("config", "--changed", HIVEWIRE_LEASE_S="3s").out
    assert "lease_s" in changed
    assert "retry_most_s" not in changed
    assert len(hive("config", "lease_s", "--json").json) == 1


def test_secrets_are_hidden(hive: Hive) -> None:
    for options in (["--json"], [], ["--all"], ["--all", "--json"]):
        ran = hive("config", *options, protocol="redis://user:canary-one@localhost/0", REDIS_PASSWORD="canary-two")
        assert "canary" not in ran.out + ran.err
        assert ran.code == 0, ran.err


@pytest.mark.parametrize("url", ["redis://user:can?ary@localhost", "postgresql://user:can/ary@localhost?schema=x"])
def test_a_login_is_hidden_however_it_is_written(hive: Hive, url: str) -> None:
    ran = hive("config", protocol=url)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
    assert "can" not in ran.err.replace("can not", "").replace("cannot", "")
    shown = hive("config", "llm.base_url", protocol="", HIVEWIRE_LLM_BASE_URL="http://user:can/ary@localhost/v1")
    assert shown.code == 0
    assert "can" not in shown.out


def test_a_url_that_ends_with_a_line_break_is_refused_without_its_login(hive: Hive) -> None:
    ran = hive("queues", protocol="", HIVEWIRE_URL="redis://user:canary@localhost\n")
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
    assert "canary" not in ran.err
    assert "accepted: a line of text" in ran.err


def test_a_report_of_a_bench_has_no_login(hive: Hive, tmp_path: Path) -> None:
    report = tmp_path / "page.html"
    words = ["--protocol", "memory://user:canary@here", "--workload", "W1", "--rounds", "1", "--scale", "0.001"]
    ran = hive("bench", *words, "--report", str(report), "--json", protocol="")
    assert ran.code == 0, ran.err
    assert "memory://***@here" in report.read_text()
    assert "canary" not in report.read_text() + ran.out


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HIVEWIRE_LEASE_S": "soon"}, "HIVEWIRE_LEASE_S"),
        ({"PROTOCOL_TYPE": "pigeon"}, "PROTOCOL_TYPE"),
        ({"HIVEWIRE_LOG": "loud"}, "HIVEWIRE_LOG"),
    ],
)
def test_a_bad_setting_is_one_sentence(hive: Hive, environment: dict[str, str], says: str) -> None:
    for command in (["config"], ["send", "coder"], ["queues"], ["worker", "team:coder"], ["loadtest"]):
        ran = hive(*command, protocol="", **environment)
        assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
        assert says in ran.err


def test_a_setting_that_is_not_there(hive: Hive) -> None:
    ran = hive("config", "lease")
    assert (ran.code, ran.is_one_sentence) == (2, True)


def test_a_locked_file_does_not_hang_the_command(hive: Hive) -> None:
    hive("send", "coder")
    with closing(sqlite3.connect(hive.folder / "hive.db", isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        ran = hive("send", "coder")
    assert (ran.code, ran.is_one_sentence) == (2, True)
    assert f"process {os.getpid()} holds its write lock" in ran.err
    assert hive("queues", "--json").json[0]["ready"] == 1
