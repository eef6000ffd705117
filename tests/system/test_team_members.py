"""The processes of a team that cannot start."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path

import pytest

from hivewire.cli import team_members
from hivewire.cli.options import UsageError
from hivewire.cli.team_members import ProcessMembers
from hivewire.rules.restart import CrashLoop


async def test_a_team_that_never_starts_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_members, "CrashLoop", partial(CrashLoop, first_s=0.01))
    program = "import os, sys; os.write(1, b'no licence\\n'); sys.exit(3)"
    told: list[str] = []
    output = tmp_path / "workers.log"
    members = ProcessMembers(
        1, told.append, command=lambda link: [sys.executable, "-c", program], output=output, grace_s=1.0
    )
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(60):
            await members.run()
    (error,) = caught.value.exceptions
    assert isinstance(error, UsageError)
    assert "cannot start: no licence" in str(error)
    assert str(output) in str(error)
    assert output.read_text().count("no licence") == 5
    assert len(told) == 4
    assert all("ended with exit code 3; starting another in" in line for line in told)
