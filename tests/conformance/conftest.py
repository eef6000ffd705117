"""The one fixture of the conformance suite, for each backend of this repository."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("hivewire.testing.conformance")

from tests.conformance.backends import FABRICS  # noqa: E402

from hivewire.testing.conformance.fabric import Fabric  # noqa: E402 -- after the line above
from hivewire.testing.leaks import Census  # noqa: E402


@pytest.fixture(params=sorted(FABRICS))
async def fabric(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fabric]:
    """One store, alone for this test; nothing of it is left afterwards."""
    before = Census.take()
    async with FABRICS[request.param](tmp_path) as made:
        yield made
    await before.check()
