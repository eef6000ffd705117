"""An outage is told once, and its end."""

from __future__ import annotations

import logging

import pytest

from hivewire.engine.outage import Outage


def test_it_is_told_once_and_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("hivewire.engine.outage.time.monotonic", lambda: now[0])
    outage = Outage(logging.getLogger("hivewire.test"), "take messages", "coder")
    with caplog.at_level(logging.INFO, "hivewire.test"):
        outage.is_over()
        for _ in range(700):
            outage.goes_on(OSError("away"))
            now[0] += 0.1
        outage.is_over()
        outage.is_over()
        outage.goes_on(OSError("away"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "cannot take messages yet"),
        ("WARNING", "cannot take messages yet"),
        ("INFO", "can take messages again"),
        ("WARNING", "cannot take messages yet"),
    ]
