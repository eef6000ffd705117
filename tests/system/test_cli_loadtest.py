"""`hivewire loadtest`: the figures, the report, kills, and what it says when the promise breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.system.commands import Hive

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
    ran = hive("loadtest", "--rate", "100", "--duration", "500ms", "--json")
    assert (ran.code, ran.json["handled"], ran.json["duplicates"]) == (0, 50, 0)


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
