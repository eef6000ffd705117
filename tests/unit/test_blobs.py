"""Large contents in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from hivewire.blobs.local import FolderBlobs
from hivewire.engine.claims import _put_at
from hivewire.errors import ConnectionLost


async def test_what_a_kill_leaves_of_a_content_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> NoReturn:
        raise OSError(9, "killed")

    name = "1700000000-0123456789abcdef"
    store = FolderBlobs(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(Exception, match="killed"):
            await store.put(name, b"half")
    (left,) = await store.names()
    assert left != name
    assert await store.get(name) is None
    assert _put_at(left) == _put_at(name)
    await store.delete([left])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    await store.put(name, b"whole")
    assert (await store.names(), await store.get(name)) == ([name], b"whole")


async def test_a_folder_that_is_not_mounted_loses_no_content(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path / "mount")
    with pytest.raises(ConnectionLost, match="read the content 1-ab"):
        await store.get("1-ab")
    (tmp_path / "mount").mkdir()
    assert await store.get("1-ab") is None
