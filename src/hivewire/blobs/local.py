"""Large contents on this host, or on what it has mounted: a file each in a folder, or a row each in an SQLite file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hivewire.blobs.store import BlobStore
from hivewire.errors import BackendError, ConnectionLost

T = TypeVar("T")


class FolderBlobs(BlobStore):
    """A file for each, in a folder that all processes can reach. Written beside its name, synced, then renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / name[-2:] / name

    async def put(self, name: str, body: bytes) -> None:
        await self._run("store", name, lambda: self._put(self._path(name), body))

    @staticmethod
    def _put(path: Path, body: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}~{path.name[-2:]}")  # what a kill leaves of it is swept as any other
        try:
            with beside.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    async def get(self, name: str) -> bytes | None:
        def read() -> bytes | None:
            try:
                return self._path(name).read_bytes()
            except FileNotFoundError:
                if not self._folder.is_dir():
                    raise  # not mounted: the message is not lost
                return None

        return await self._run("read", name, read)

    async def delete(self, names: Sequence[str]) -> None:
        def remove() -> None:
            for name in names:
                self._path(name).unlink(missing_ok=True)

        await self._run("delete", names[0] if names else "", remove)

    async def names(self) -> list[str]:
        return await self._run("list", "", lambda: [path.name for path in self._folder.glob("??/*")])

    async def _run(self, doing: str, name: str, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise ConnectionLost(f"{doing} the content {name} in {self._folder}: {error.strerror}") from error


class SQLiteBlobs(BlobStore):
    """A row for each, in a file of its own, used by any number of processes of one host."""

    _WAIT_S = 5.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "hivewire-blobs")
        self._db: sqlite3.Connection | None = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self._path, timeout=self._WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("CREATE TABLE IF NOT EXISTS blobs(name TEXT PRIMARY KEY, body BLOB NOT NULL)")
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    async def put(self, name: str, body: bytes) -> None:
        await self._run(
            "store", name, lambda db: db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?)", (name, body))
        )

    async def get(self, name: str) -> bytes | None:
        row = await self._run(
            "read", name, lambda db: db.execute("SELECT body FROM blobs WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else row[0]

    async def delete(self, names: Sequence[str]) -> None:
        def remove(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM blobs WHERE name = ?", [(name,) for name in names])
            db.execute("PRAGMA incremental_vacuum").fetchall()

        await self._run("delete", names[0] if names else "", remove)

    async def names(self) -> list[str]:
        rows: Iterable[tuple[str]] = await self._run(
            "list", "", lambda db: db.execute("SELECT name FROM blobs").fetchall()
        )
        return [name for (name,) in rows]

    async def _run(self, doing: str, name: str, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            return work(self._open())

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except sqlite3.OperationalError as error:  # locked, full, not there: it may end
            raise ConnectionLost(f"{doing} the content {name} in {self._path}: {error}") from error
        except sqlite3.Error as error:
            raise BackendError(f"{doing} the content {name} in {self._path}: {error}") from error

    async def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, db.close)
        self._thread.shutdown()
