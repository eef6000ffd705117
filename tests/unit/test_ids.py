"""Ids are unique over threads, forks and processes, rise within a process, and carry the bits of RFC 9562."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire import ids
from hivewire.ids import derived_id, new_id

SOURCE = Path(__file__).parents[2] / "src"


def test_new_ids_are_uuids_of_version_7_with_the_present_time() -> None:
    before = time.time_ns() // 1_000_000
    made = [UUID(new_id()) for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert {(id.version, id.variant) for id in made} == {(7, RFC_4122)}
    assert all(before <= id.int >> 80 <= after for id in made)


def test_new_ids_are_written_as_uuids_are() -> None:
    assert all(str(UUID(id)) == id for id in (new_id(), derived_id("a")))


def test_new_ids_rise_as_text() -> None:
    made = [new_id() for _ in range(200_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_new_ids_rise_over_many_milliseconds_and_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000_000_000_000]
    monkeypatch.setattr(ids, "time_ns", lambda: now[0])
    ordered = ids._Ordered()
    made = []
    for step_ms in (0, 1, 0, 3, -5000, 0, 1, 6000, 0):
        now[0] += step_ms * 1_000_000
        made += [ordered.new() for _ in range(500)]
    assert made == sorted(set(made))


def test_the_counter_carries_from_one_group_of_digits_into_the_next() -> None:
    ordered = ids._Ordered()
    ordered.new()
    tails, _, now = ordered.state
    ordered.state = tails, (1 << 6) - 2, (1 << 62, now[1], iter(()))  # the same millisecond for ever
    made = [ordered.new() for _ in range(600)]  # two blocks and a part of the third
    assert made == sorted(set(made))
    assert made[0][:19] < made[-1][:19]
    assert {(UUID(id).version, UUID(id).variant) for id in made} == {(7, RFC_4122)}


def test_new_ids_are_unique_over_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [id for some in pool.map(lambda _: [new_id() for _ in range(20_000)], range(8)) for id in some]
    assert len(set(made)) == len(made)


@pytest.mark.processes
def test_new_ids_are_unique_over_forks_and_processes() -> None:
    program = (
        "import os, sys\n"
        "from hivewire.ids import new_id\n"
        "new_id()\n"
        "children = []\n"
        "for n in range(4):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(1, ''.join(new_id() + chr(10) for _ in range(90)).encode())\n"  # one write: below PIPE_BUF
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "os.write(1, ''.join(new_id() + chr(10) for _ in range(90)).encode())\n"
        "for child in children: os.waitpid(child, 0)\n"
    )
    made: list[str] = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            check=True,
            capture_output=True,
        )
        made += run.stdout.decode().split()
    assert len(made) == 2 * 5 * 90
    assert len(set(made)) == len(made)


causes = st.lists(st.text() | st.integers(), max_size=4)


@given(causes)
def test_derived_ids_are_uuids_of_version_8_and_always_the_same(cause: list[str | int]) -> None:
    id = derived_id(*cause)
    assert (UUID(id).version, UUID(id).variant) == (8, RFC_4122)
    assert derived_id(*cause) == id


@given(causes, causes)
def test_different_causes_give_different_ids(one: list[str | int], other: list[str | int]) -> None:
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (derived_id(*one) == derived_id(*other)) == same


def test_parts_of_a_cause_do_not_run_into_each_other() -> None:
    joined = {derived_id(*cause) for cause in (("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), ("a\x1f1:b", "c"))}
    assert len(joined) == 5


def test_derived_ids_do_not_change_from_one_version_to_the_next() -> None:
    assert derived_id("input", 0, "coder") == "30c5f70b-b9fe-8bf1-837b-befbd7f664f2"
