"""What went wrong with the file, in one sentence, and who holds its lock."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from hivewire.errors import BackendError, ConnectionLost

_WRITE_LOCK_BYTE = 120  # of the -shm file: the place of the WAL write lock, part of SQLite's file format

_NEXT = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only; make both writable",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a copy, or move it away together with its -wal file",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database; choose another file",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check that it may be read and written here",
    sqlite3.SQLITE_PERM: "access is refused; check the owner and the mode of the file",
    sqlite3.SQLITE_AUTH: "access is refused; check the owner and the mode of the file",
    sqlite3.SQLITE_IOERR: "reading or writing failed; check the disk and its free space",
}
_LASTING = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class StoreFailing(ConnectionLost):
    """The file cannot be used at the moment. Nothing was stored; the same call works when that has ended."""


def is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_full(error: BaseException) -> bool:
    """No room on the disk; writing the log says so as a failure to write."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, sqlite3.Error) and code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def concerns_the_file(error: BaseException) -> bool:
    """True: every operation would fail so. False: this one is to blame."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code in _NEXT or is_busy(error)
    return isinstance(error, (BackendError, OSError))


def explain(error: BaseException, doing: str, path: Path) -> Exception:
    """The error as one of ours."""
    if isinstance(error, BackendError):
        return error
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if is_busy(error):
            return locked(doing, path)
        if code in _NEXT:
            kind = BackendError if code in _LASTING else StoreFailing
            return kind(f"{doing} {path}: {_NEXT[code]} ({error})")
        return BackendError(f"{doing} {path}: {error}")
    if isinstance(error, OSError):
        return StoreFailing(f"{doing} {path}: {error.strerror or error}")
    return BackendError(f"{doing} {path}: {type(error).__name__}: {error}")


def gone(path: Path) -> StoreFailing:
    advice = "what was in it is gone; the next use begins with the file that has its name now, or makes one"
    return StoreFailing(f"use {path}: the file was deleted or replaced while it was open: {advice}")


def locked(doing: str, path: Path) -> StoreFailing:
    holder = lock_holder(path)
    if holder is None:
        return StoreFailing(f"{doing} {path}: another process holds its write lock; wait for it or end it")
    pid, stopped = holder
    state = "is stopped and holds" if stopped else "holds"
    return StoreFailing(f"{doing} {path}: process {pid} {state} its write lock; let it go on, or end it")


def lock_holder(path: Path) -> tuple[int, bool] | None:
    """The process that is inside a write, and whether it is stopped. None if nobody is or nobody knows.

    Read from the kernel's list: asking by `fcntl` would need a descriptor of the file, and closing
    that would drop the locks that SQLite holds in this process.
    """
    try:
        shm = os.stat(f"{path}-shm")
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) != 8 or fields[1] != "POSIX" or fields[3] != "WRITE":
            continue
        inode = fields[5].rsplit(":", 1)[-1]
        last = float("inf") if fields[7] == "EOF" else int(fields[7])
        if int(inode) == shm.st_ino and int(fields[6]) <= _WRITE_LOCK_BYTE <= last:
            pid = int(fields[4])
            return pid, _is_stopped(pid)
    return None


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt"
    except (OSError, IndexError):
        return False
