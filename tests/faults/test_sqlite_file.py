"""A file that is foreign, damaged, newer, read-only or full: one clear error, health red, nothing harmed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hivewire.errors import BackendError
from hivewire.factory import connect
from hivewire.testing.conformance.scenario import send_numbered, take, task

SOURCE = Path(__file__).resolve().parents[2] / "src"


async def refused(path: Path) -> str:
    """The text of the error, after checking that health says the same without raising."""
    protocol = connect(f"sqlite:///{path}")
    try:
        with pytest.raises(BackendError) as caught:
            await protocol.send(task("anybody"), timeout_s=1)
        health = await asyncio.wait_for(protocol.health(), 8)
        assert not health.ok
        assert health.detail
        assert str(path) in str(caught.value)
        return str(caught.value)
    finally:
        await protocol.close()


async def test_a_foreign_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "foreign.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers(name TEXT)")
        db.execute("INSERT INTO customers VALUES ('precious')")
    db.close()
    before = path.read_bytes()
    text = await refused(path)
    assert path.read_bytes() == before
    assert "another" in text or "not" in text
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


async def test_a_file_that_is_no_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    before = b"dear diary, " * 1000
    path.write_bytes(before)
    await refused(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    async with connect(f"sqlite:///{path}") as protocol:
        await protocol.send(task("later"))
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute(f"PRAGMA user_version = {version + 1}")
    db.commit()
    db.close()
    text = await refused(path)
    assert "newer" in text or "version" in text


async def test_a_damaged_file_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    async with connect(f"sqlite:///{path}") as protocol:
        await send_numbered(protocol, "hurt", 200, keys=[f"k{n}" for n in range(20)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    protocol = connect(f"sqlite:///{path}")
    with pytest.raises(BackendError):
        await take(protocol, "hurt", 200, within_s=5)
    health = await asyncio.wait_for(protocol.health(), 8)
    assert not health.ok
    await protocol.close()


async def test_a_folder_that_does_not_exist_is_refused_or_made(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "folder" / "hive.db"
    protocol = connect(f"sqlite:///{path}")
    (outcome,) = await asyncio.gather(protocol.send(task("anybody"), timeout_s=1), return_exceptions=True)
    health = await protocol.health()
    await protocol.close()
    if isinstance(outcome, BaseException):
        assert isinstance(outcome, BackendError)
        assert str(path) in str(outcome)
    assert health.ok == path.exists() == (not isinstance(outcome, BaseException))


async def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder.db"
    path.mkdir()
    await refused(path)


READ_ONLY = """
import asyncio, os, sys
path = sys.argv[1]
# All that is imported late, too: the other user may not read the interpreter's own folder.
import hivewire.backends.sqlite, hivewire.engine.protocol, stringprep, encodings.idna
from hivewire.errors import BackendError
from hivewire.factory import connect
from hivewire.message import Message
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
async def main():
    protocol = connect(f"sqlite:///{path}")
    try:
        await protocol.send(Message(type="task", sender="me", to="a"), timeout_s=1)
    except BackendError as error:
        print("refused", error)
    health = await protocol.health()
    print("health", health.ok, health.detail)
    await protocol.close()

asyncio.run(main())
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, timeout=50, env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _readable_by_all(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if parent == Path("/tmp") or parent == Path("/"):
            break
        parent.chmod(0o755)


async def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.db"
    async with connect(f"sqlite:///{path}") as protocol:
        await protocol.send(task("a"))
    _readable_by_all(tmp_path)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        said = run(READ_ONLY, str(path))
    finally:
        tmp_path.chmod(0o755)
        path.chmod(0o644)
    assert "refused" in said
    assert str(path) in said
    assert "health False" in said
    async with connect(f"sqlite:///{path}") as protocol:
        assert len(await take(protocol, "a", 1)) == 1


FULL = """
import asyncio, resource, sys
from hivewire.errors import BackendError
from hivewire.factory import connect
from hivewire.message import Message

async def main(path):
    async with connect(f"sqlite:///{path}") as protocol:
        stored = 0
        for _ in range(20):
            await protocol.send(Message(type="task", sender="me", to="a", content={"n": stored}))
            stored += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        refused = 0
        while refused < 3:
            message = Message(type="task", sender="me", to="a", content={"n": stored})
            try:
                await protocol.send(message, timeout_s=0.5)
                stored += 1
            except BackendError as error:
                refused += 1
                print("refused", error)
            assert stored < 1000, "never full"
        print("health", (await protocol.health()).ok)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await protocol.send(Message(type="task", sender="me", to="a", content={"n": stored}), timeout_s=20)
        stored += 1
        print("health", (await protocol.health()).ok)
        print("stored", stored)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk: the same errors, without filling one."""
    path = tmp_path / "full.db"
    said = run(FULL, str(path)).splitlines()
    assert sum(line.startswith("refused") for line in said) == 3
    assert [line for line in said if line.startswith("health")] == ["health False", "health True"]
    stored = int(said[-1].split()[1])
    async with connect(f"sqlite:///{path}") as protocol:
        taken = await take(protocol, "a", stored, within_s=30)
        assert [delivery.message.content["n"] for delivery in taken] == list(range(stored))


SMALL_DISK = """
import asyncio, sys
from pathlib import Path
from hivewire.errors import BackendError
from hivewire.factory import connect
from hivewire.message import Message

def fill(ballast):
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2

async def main(folder):
    ballast = folder / "ballast"
    async with connect(f"sqlite:///{folder}/small.db") as protocol:
        stored = refused = 0

        async def send():
            nonlocal stored
            content = {"n": stored, "text": "y" * 2000}
            await protocol.send(Message(type="task", sender="me", to="a", content=content), timeout_s=0.5)
            stored += 1

        for _ in range(20):
            await send()
        for _ in range(3):  # full, free, full again
            fill(ballast)
            while True:
                try:
                    await send()
                except BackendError as error:
                    refused += 1
                    print("refused", error)
                    break
                assert stored < 5000, "never full"
            print("health", (await protocol.health()).ok)
            ballast.unlink()
            await send()
            print("health", (await protocol.health()).ok)
        taken = []
        while len(taken) < stored:
            for delivery in await protocol.receive("a", limit=100, wait_s=10.0):
                async with delivery:
                    taken.append(delivery.message.content["n"])
        assert taken == list(range(stored)), taken
    print("stored", stored, "refused", refused)

asyncio.run(main(Path(sys.argv[1])))
"""
IN_A_SMALL_DISK = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"')


def can_mount() -> bool:
    """Root may; others where the kernel lets them have a name space of their own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return not subprocess.run([*IN_A_SMALL_DISK, folder, "true"], check=False, capture_output=True).returncode
        except FileNotFoundError:
            return False


@pytest.mark.skipif(not can_mount(), reason="nobody may mount here: the imitated full disk must do")
def test_a_disk_that_is_really_full_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    command = [*IN_A_SMALL_DISK, str(tmp_path), sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    refusals = [line for line in said if line.startswith("refused")]
    assert len(refusals) == 3
    assert all("disk" in line and "small.db" in line for line in refusals)
    assert [line for line in said if line.startswith("health")] == ["health False", "health True"] * 3


HOLDER = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE state SET epoch = epoch")
print("inside", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
db.execute("ROLLBACK")
"""


async def test_a_process_stopped_inside_a_write_turns_health_red_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    async with connect(f"sqlite:///{path}") as protocol:
        await protocol.send(task("a", 1))
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)  # noqa: ASYNC220 -- it returns at once
        assert holder.stdout is not None
        try:
            assert await asyncio.to_thread(holder.stdout.readline) == b"inside\n"
            with pytest.raises(BackendError):
                await protocol.send(task("a", 2), timeout_s=1)
            health = await asyncio.wait_for(protocol.health(), 8)
            assert not health.ok
            assert str(holder.pid) in health.detail
            holder.send_signal(signal.SIGCONT)
            await asyncio.to_thread(holder.wait)
            await protocol.send(task("a", 3), timeout_s=10)
            assert (await protocol.health()).ok
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
        numbers = {delivery.message.content["n"] for delivery in await take(protocol, "a", 2)}
        assert {1, 3} <= numbers


async def test_what_is_sent_after_the_file_was_deleted_is_in_the_file_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "deleted.db"
    async with connect(f"sqlite:///{path}") as protocol:
        await protocol.send(task("kept", 0))
        for file in tmp_path.iterdir():
            file.unlink()
        await protocol.send(task("kept", 1))
    async with connect(f"sqlite:///{path}") as other:
        assert [taken.message.content for taken in await take(other, "kept", 1)] == [task("kept", 1).content]


async def test_who_serves_a_file_that_is_deleted_goes_on_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "served.db"
    async with connect(f"sqlite:///{path}", lease_s=1) as protocol:
        await protocol.send(task("served", 0))
        await take(protocol, "served", 1)
        for file in tmp_path.iterdir():
            file.unlink()
        async with connect(f"sqlite:///{path}") as other:
            await other.send(task("served", 1))
        with pytest.raises(BackendError, match="deleted or replaced"):
            await protocol.receive("served", wait_s=5.0)
        assert [taken.message.content for taken in await take(protocol, "served", 1)] == [task("served", 1).content]
