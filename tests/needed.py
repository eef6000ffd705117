"""Servers that a test needs and that a machine may not have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hivewire.testing.servers import ServerMissing


@contextmanager
def needed() -> Iterator[None]:
    """Around the start of a server. Without it on this machine the test is skipped; where CI is set it fails."""
    try:
        yield
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}; with CI set its tests must run")
        pytest.skip(str(missing))
