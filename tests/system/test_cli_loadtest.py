"""`hivewire loadtest`: the figures, the report, kills, and what it says when the promise breaks."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import hivewire as hw
from hivewire.cli.main import main
from tests.system.commands import Hive, environment, wait_for_end

KEYS = {"sent", "confirmed", "handled", "lost", "duplicates", "out_of_order", "dead", "throughput", "latency_ms"} | {
    "cpu_s",
    "rss_mb",
}


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


@pytest.mark.parametrize("protocol", ["memory", "sqlite"])
def test_every_message_is_accounted_for(hive: Hive, protocol: str) -> None:
    report = hive.folder / "report.html"
    where = "memory://" if protocol == "memory" else hive.protocol
    options = ["--rate", "300", "--duration", "2s", "--workers", "4", "--keys", "20", "--report", str(report)]
    ran = hive("loadtest", *options, "--json", protocol=where)
    assert ran.code == 0, ran.err
    found = ran.json
    assert set(found) >= KEYS
    assert found["sent"] == found["confirmed"] == found["handled"] == 600
    assert (found["lost"], found["duplicates"], found["out_of_order"], found["dead"]) == (0, 0, 0, 0)
    assert list(found["latency_ms"]) == ["p50", "p95", "p99", "p99.9", "max"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["max"]
    assert found["cpu_s"] > 0
    assert found["rss_mb"] > 10
    page = report.read_text()
    assert page.count("<svg") == 3
    assert "The promise held" in page
    assert "http" not in page.replace("<!doctype html>", "")  # nothing is loaded from elsewhere


@pytest.mark.processes
@pytest.mark.slow
def test_workers_in_other_processes_one_of_them_killed(hive: Hive) -> None:
    options = ["--rate", "200", "--duration", "4s", "--workers", "4", "--processes", "2", "--keys", "20", "--kill"]
    ran = hive("loadtest", *options, "--work", "20ms", "--json", HIVEWIRE_LEASE_S="1s")
    assert ran.code == 0, ran.err + ran.out
    assert "SIGKILL" in ran.err
    found = ran.json
    assert (found["killed"], found["processes"]) == (1, 2)
    assert found["confirmed"] == found["handled"] == 800
    assert (found["lost"], found["out_of_order"]) == (0, 0)


def test_a_second_run_does_not_count_what_the_first_left(hive: Hive) -> None:
    hive("send", "hivewire-loadtest", "--content", '{"run": "another", "key": 0, "number": 0, "intended_ns": 0}')
    hive("send", "hivewire-loadtest", "--text", "of somebody else")
    hive("send", "hivewire-loadtest", "--text", "dead", "--ttl", "0s")
    ran = hive("loadtest", "--rate", "100", "--duration", "500ms", "--json")
    assert (ran.code, ran.json["handled"], ran.json["duplicates"]) == (0, 50, 0), ran.err


def test_in_words(hive: Hive) -> None:
    ran = hive("loadtest", "--rate", "50", "--duration", "500ms", protocol="memory://")
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "the promise held"
    assert "lost 0, duplicates 0, out of order 0" in ran.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rate", "0"], "whole number"),
        (["--rate", "fast"], "whole number"),
        (["--duration", "0"], "above 0"),
        (["--duration", "soon"], "duration"),
        (["--kill"], "--processes 2"),
        (["--report", "/no/such/folder/x.html"], "no folder"),
    ],
)
def test_a_wrong_option_is_one_sentence(hive: Hive, options: list[str], says: str) -> None:
    ran = hive("loadtest", *options)
    assert (ran.code, ran.is_one_sentence) == (2, True), ran.err
    assert says in ran.err


def test_memory_has_one_process(hive: Hive) -> None:
    ran = hive("loadtest", "--processes", "2", protocol="memory://")
    assert (ran.code, ran.is_one_sentence) == (2, True)


class _Planted:
    """Middleware with a bug: what it does to every hundredth message is up to `harm`."""

    def __init__(self, harm: str) -> None:
        self._harm = harm
        self._seen = 0

    async def __call__(self, message: hw.Message, next: Callable[[hw.Message], Awaitable[Any]]) -> Any:
        self._seen += 1
        if self._seen % 100:
            return await next(message)
        if self._harm == "reject":
            raise hw.Reject("planted")
        if self._harm == "twice":
            await next(message)
            return await next(message)
        return None  # acknowledged, never handled


@pytest.mark.parametrize(
    ("harm", "code", "figures"),
    [
        ("lose", 1, {"lost": 3, "handled": 297, "dead": 0, "duplicates": 0}),
        ("reject", 0, {"lost": 0, "handled": 297, "dead": 3, "duplicates": 0}),
        ("twice", 0, {"lost": 0, "handled": 300, "dead": 0, "duplicates": 3}),
    ],
)
def test_a_planted_bug_is_counted_exactly(
    harm: str,
    code: int,
    figures: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def connect(args: object) -> hw.Protocol:
        return hw.connect(f"sqlite:///{tmp_path}/hive.db", incoming=[_Planted(harm)])

    monkeypatch.setattr("hivewire.cli.loadtest_run.connect_from", connect)
    assert main(["loadtest", "--rate", "300", "--duration", "1s", "--protocol", "memory", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in figures} == figures
    assert found["ok"] is (code == 0)


def test_more_than_the_store_can_take_is_said_and_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow:
        async def __call__(self, message: hw.Message, next: Callable[[hw.Message], Awaitable[Any]]) -> Any:
            await asyncio.sleep(0.02)
            return await next(message)

    def connect(args: object) -> hw.Protocol:
        return hw.connect("memory://", incoming=[Slow()])

    monkeypatch.setattr("hivewire.cli.loadtest_run.connect_from", connect)
    options = ["--rate", "200", "--duration", "1s", "--workers", "1", "--keys", "1", "--protocol", "memory", "--json"]
    assert main(["loadtest", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    # One handler of 20 ms does 50 a second: 200 messages need 4 s, and the last one has waited for 3 of them.
    assert found["handled"] == 200
    assert found["latency_ms"]["max"] > 2500
    assert found["throughput"] < 55


@pytest.mark.processes
def test_ctrl_c_ends_the_workers_too(hive: Hive) -> None:
    options = ["--rate", "100", "--duration", "60s", "--processes", "2", "--work", "1ms"]
    with hive.running("loadtest", *options) as running:
        (pids,) = running.until(r"worker processes: (\d+ \d+)$")
        running.signal(signal.SIGINT)
        assert running.wait() == 130, running.seen
        assert running.seen.endswith("hivewire loadtest: interrupted\n")
        assert all(wait_for_end(int(pid), within_s=1) for pid in pids.split())


def test_progress_is_shown_on_a_terminal_and_never_in_a_pipe(hive: Hive) -> None:
    options = ["--rate", "100", "--duration", "1500ms"]
    assert "sent" not in hive("loadtest", *options).err
    ours, terminal = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "hivewire", "loadtest", *options, "--json", "--protocol", hive.protocol],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=terminal,
        )
        out, _ = process.communicate()
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(terminal)
    assert re.search(r"\r1 s: \d+ sent, \d+ handled", shown)
    assert json.loads(out)["lost"] == 0
