"""A process notices that its parent is gone, however the parent went."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from hivewire.coordination.serving import stop_with_parent


@pytest.mark.parametrize("is_unread", [False, True])
def test_the_end_of_the_link_is_a_sigterm_also_when_the_parent_has_not_read_all(
    monkeypatch: pytest.MonkeyPatch, is_unread: bool
) -> None:
    signals: list[int] = []
    noticed = threading.Event()

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        signals.append(number)
        noticed.set()

    monkeypatch.setattr("hivewire.coordination.serving.os.kill", kill)
    parents, ours = socket.socketpair()
    stop_with_parent(ours)
    if is_unread:
        ours.sendall(b"ready\n")
    parents.close()
    assert noticed.wait(10)
    assert signals == [signal.SIGTERM]
    ours.close()
