"""The test kit for users, by the tests of an example project: they pass, and they fail when the project is broken."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hivewire.errors import ConnectionLost
from hivewire.message import Message
from hivewire.testing.kit import Kit, faulty
from tests.system.commands import environment

PROJECT = Path(__file__).parents[2] / "examples" / "tested_team"
CONFIGURATION = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"


def _tested(folder: Path, *options: str) -> str:
    (folder / "pytest.ini").write_text(CONFIGURATION)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    return ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    copy = tmp_path / "project"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_the_example_project_s_tests_pass(project: Path) -> None:
    assert "5 passed" in _tested(project)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('* message.content["count"]', "* 2"),
        ("delay_s=3600", "delay_s=1800"),
        ("raise hw.Reject(", "raise ValueError("),
        ('"bill", "customer"', '"bill", "nobody"'),
    ],
)
def test_they_fail_when_the_team_is_wrong(project: Path, right: str, wrong: str) -> None:
    source = project / "team.py"
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    assert re.search(r"\d failed", _tested(project, "-x"))


def test_a_failure_names_the_seed_and_the_seed_can_be_given(project: Path) -> None:
    (project / "test_seed.py").write_text("def test_it(hive_seed):\n    assert hive_seed == 4711\n")
    assert "repeat it with --hive-seed" in _tested(project, "test_seed.py")
    assert "1 passed" in _tested(project, "test_seed.py", "--hive-seed", "4711")


async def test_a_seed_decides_what_goes_wrong_and_healed_nothing_does() -> None:
    async def struck(seed: int) -> list[bool]:
        protocol, trouble = faulty(seed, rate=0.5)
        found = []
        async with protocol:
            for n in range(20):
                before = trouble.struck
                await protocol.send(Message(type="task", sender="me", to="a", content=n, id=f"{seed}-{n}"))
                found.append(trouble.struck > before)
            trouble.heal()
            assert [message.content for message in await Kit(protocol).received("a")] == list(range(20))
        return found

    assert await struck(1) == await struck(1)
    assert any(await struck(1))
    assert await struck(1) != await struck(2)


async def test_a_faulty_store_refuses_a_receive_as_a_lost_connection_does() -> None:
    protocol, trouble = faulty(3, rate=0.0)
    async with protocol:
        await protocol.receive("a", wait_s=0)
        trouble.rate = 2.0
        with pytest.raises(ConnectionLost):
            await protocol.receive("a", wait_s=0)
        trouble.heal()
