"""The SQLite driver when the file is not as it should be, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest

from hivewire.backend import Append, Back
from hivewire.backends.sqlite import SQLiteBackend, file
from hivewire.errors import BackendError, Closed, ConnectionLost, SettingsError
from hivewire.settings import Settings
from tests.unit.sqlite_driver import Owner, member, opened, put, record, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q.db"


async def refusal(path: Path) -> str:
    with pytest.raises(BackendError) as caught:
        async with opened(path):
            pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_files_that_are_not_ours_are_left_alone(path: Path) -> None:
    path.write_text("Dear diary, today nothing happened at all, and then it happened again. " * 20)
    assert "not an SQLite database" in await refusal(path)
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs(a)")
    db.commit()
    before = path.read_bytes()
    assert "another program" in await refusal(path)
    assert path.read_bytes() == before
    db.close()


async def test_a_newer_format_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "format 99" in await refusal(path)


async def test_a_missing_directory_and_a_directory_as_file(tmp_path: Path) -> None:
    assert "does not exist" in await refusal(tmp_path / "nowhere" / "q.db")
    (tmp_path / "folder").mkdir()
    await refusal(tmp_path / "folder")


def test_a_database_in_memory_is_not_offered() -> None:
    with pytest.raises(SettingsError, match="memory://"):
        SQLiteBackend(Settings(protocol="sqlite", url="sqlite:///:memory:"))


async def test_a_damaged_file_is_told(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", *range(500))
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 2 :] = os.urandom(len(damaged) - 4096 * 2)
    path.write_bytes(damaged)
    with pytest.raises(BackendError, match="damaged"):
        async with opened(path) as backend:
            await put(backend, "q", "k", 1)


async def test_a_locked_file_is_told_with_the_holder_and_works_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "PATIENCE_S", 0.2)
    hold = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
    hold += "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    async with opened(path) as backend:
        await put(backend, "q", "k", 0)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", hold, str(path), stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        await process.stdout.readline()
        try:
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(ConnectionLost, match=f"process {process.pid} is stopped"):
                await put(backend, "q", "k", 1)
            begun = time.monotonic()
            health = await backend.health()
            assert time.monotonic() - begun < 5
            assert not health.ok
            assert f"process {process.pid} is stopped" in health.detail
        finally:
            process.kill()
            await process.communicate()
        await put(backend, "q", "k", 2)
        assert (await backend.health()).ok
        consumer = await backend.consume("q", member(), Owner())
        assert texts(await consumer.fetch(9, 0)) == ["0", "2"]


async def test_a_full_disk_is_told_and_works_again_when_there_is_room(path: Path) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        await put(backend, "q", "k", "before")
        taken = await consumer.fetch(9, 0)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
        try:
            with pytest.raises(BackendError) as caught:
                await put(backend, "q", "k", "lost" * 1_000)
            assert caught.value.retryable
            with pytest.raises(BackendError):
                await consumer.settle(taken)
            assert not (await backend.health()).ok
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (await backend.health()).ok
        await put(backend, "q", "k", "after")
        assert await consumer.settle((), [Back(taken[0])]) == []
        assert texts(await consumer.fetch(9, 0)) == ["before", "after"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_file_is_told(path: Path) -> None:
    async with opened(path):
        pass
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert "read" in await refusal(path)
    finally:
        path.parent.chmod(0o700)


def exit_code_of_a_child_that_uses(backend: SQLiteBackend) -> int:
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        backend.check_usable()
    except BackendError as error:
        code = 0 if "fork" in str(error) else 2
    os._exit(code)


async def test_after_a_fork_the_child_is_refused(path: Path) -> None:
    async with opened(path) as backend:
        await put(backend, "q", "k", 0)
        assert exit_code_of_a_child_that_uses(backend) == 0
        await put(backend, "q", "k", 1)


async def test_close_leaves_no_thread_and_no_descriptor(path: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    backend = SQLiteBackend(Settings(protocol="sqlite", url=f"sqlite:///{path}"))
    await backend.open()
    consumer = await backend.consume("q", member(), Owner())
    waiting = asyncio.create_task(consumer.fetch(9, 30))
    await put(backend, "other", "k", 0)
    await backend.depth("q")
    await asyncio.gather(backend.close(), backend.close())
    assert not await waiting
    await backend.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(Closed):
        await backend.append([Append("q", [record("k")])])


async def test_the_file_stays_small(path: Path) -> None:
    async with opened(path, sqlite_synchronous="normal", dedup_window_ids=1_000) as backend:
        consumer = await backend.consume("q", member(), Owner())
        sizes = []
        for _ in range(4):
            for _ in range(20):
                batch = [record(f"k{number % 9}", "x" * 900) for number in range(250)]
                await backend.append([Append("q", batch)])
                while taken := await consumer.fetch(500, 0):
                    await consumer.settle(taken)
            await backend.cleanup(3600)
            sizes.append(path.stat().st_size + os.path.getsize(f"{path}-wal"))
        assert sizes[-1] <= sizes[1] * 1.2
        assert sizes[-1] < 24_000_000


async def test_space_is_given_back_after_a_flood(path: Path) -> None:
    async with opened(path, sqlite_synchronous="normal") as backend:
        consumer = await backend.consume("q", member(), Owner())
        for _ in range(20):
            await backend.append([Append("q", [record("k", "x" * 900) for _ in range(1_000)])])
        while taken := await consumer.fetch(1_000, 0):
            await consumer.settle(taken)
        full = path.stat().st_size
        await backend.cleanup(0)
    assert path.stat().st_size < full / 2


async def test_an_idle_consumer_costs_nearly_nothing(path: Path) -> None:
    async with opened(path) as backend:
        consumer = await backend.consume("q", member(), Owner())
        waiting = asyncio.create_task(consumer.fetch(9, 1.0))
        await asyncio.sleep(0.2)
        begun = time.process_time()
        await waiting
        assert time.process_time() - begun < 0.04


async def test_what_cannot_be_noted_after_its_commit_is_in_the_file_all_the_same(path: Path) -> None:
    async with opened(path) as backend:

        def fail(transaction: object) -> None:
            raise RuntimeError("planted")

        note, backend.writer.on_settled = backend.writer.on_settled, fail
        await put(backend, "q", "k", 1)
        backend.writer.on_settled = note
        await put(backend, "q", "k", 2)
        assert (await backend.depth("q")).ready == 2
