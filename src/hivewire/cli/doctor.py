"""`hivewire doctor`: what is reachable, durable, misconfigured. Exit code 1 when something is red."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from hivewire.cli.options import (
    add_json_option,
    add_protocol_option,
    connect_from,
    printable,
    run_async,
    settings_from,
    to_json,
)
from hivewire.errors import HivewireError, SettingsError
from hivewire.version import __version__

if TYPE_CHECKING:
    from hivewire.protocol import Protocol
    from hivewire.settings import Settings

State = Literal["ok", "warning", "bad"]
MARKS: Final[dict[str, tuple[str, str]]] = {"ok": ("ok", "32"), "warning": ("warn", "33"), "bad": ("BAD", "31")}

_LITTLE_SPACE_BYTES: Final = 1 << 30
_NO_SPACE_BYTES: Final = 64 << 20
_LARGE_WAL_BYTES: Final = 1 << 30
_OLD_S: Final = 3600.0
_CLOCK_OFF_S: Final = 5.0
_EARLIEST: Final = 1_767_225_600.0
"""2026-01-01: this program is younger than that."""
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_NETWORK_FILES: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph", "afs"}


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    state: State
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_protocol_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    return run_async(_examine(args))


async def _examine(args: argparse.Namespace) -> int:
    found: list[Finding] = []
    async for finding in _findings(args):
        found.append(finding)
        if not args.json:
            _print(finding)
    if args.json:
        print(to_json([msgspec.structs.asdict(finding) for finding in found]))
    return 1 if any(finding.state == "bad" for finding in found) else 0


def _print(finding: Finding) -> None:
    mark, colour = MARKS[finding.state]
    shown = f"\x1b[{colour}m{mark:<4}\x1b[0m" if sys.stdout.isatty() else f"{mark:<4}"
    print(f"{shown}  {finding.check:<14}  {printable(finding.detail)}")


async def _findings(args: argparse.Namespace) -> AsyncIterator[Finding]:
    yield _versions()
    yield _clock()
    try:
        settings = settings_from(args)
    except SettingsError as error:
        yield Finding("settings", "bad", str(error))
        return
    yield Finding("settings", "ok", f"valid; protocol {settings.protocol}")
    for finding in differing(settings):
        yield finding
    if settings.protocol == "sqlite":
        from hivewire.backends.sqlite.schema import path_of

        path = path_of(settings.url)
        for finding in _file(path):
            yield finding
        if not path.exists():  # looking must not make one
            yield Finding("reachable", "warning", f"{path} does not exist yet; the first message makes it")
            return
    try:
        async with connect_from(args) as protocol:
            async for finding in _store(protocol, settings):
                yield finding
    except HivewireError as error:
        yield Finding("reachable", "bad", str(error))


def _versions() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        uvloop = f"uvloop {version('uvloop')}"
    except PackageNotFoundError:
        uvloop = "no uvloop"
    parts = [
        f"hivewire {__version__}",
        f"Python {platform.python_version()}",
        f"msgspec {msgspec.__version__}",
        f"SQLite {sqlite3.sqlite_version}",
        uvloop,
        f"{platform.system()} {platform.release()}",
    ]
    return Finding("versions", "ok", ", ".join(parts))


def _clock() -> Finding:
    now = time.time()
    if now < _EARLIEST:
        when = time.strftime("%Y-%m-%d", time.gmtime(now))
        return Finding("clock", "bad", f"it says {when}, which is past; schedules and ages will be wrong")
    return Finding("clock", "ok", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)))


def differing(settings: Settings) -> Iterator[Finding]:
    """The defaults in force that are not the reference's, and why; for people who come from there."""
    from hivewire.settings.schema import every_setting

    sources = {name: source for name, _, source in settings.sources()}
    for setting in every_setting():
        about = setting.about
        concerned = setting.section in ("", settings.protocol) and sources[setting.name] == "default"
        if about.reference is not None and concerned:
            ours = "none" if setting.default is None else setting.default
            yield Finding("default", "ok", f"{setting.name} is {ours} (the reference: {about.reference}): {about.why}")


def _file(path: Path) -> Iterator[Finding]:
    folder = path.absolute().parent
    if not folder.is_dir():
        yield Finding("folder", "bad", f"{folder} does not exist")
        return
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        yield Finding("folder", "bad", f"{path} or its folder cannot be written by this user")
        return
    yield Finding("folder", "ok", f"{folder} is writable")
    free = shutil.disk_usage(folder).free
    state: State = "bad" if free < _NO_SPACE_BYTES else "warning" if free < _LITTLE_SPACE_BYTES else "ok"
    yield Finding("free space", state, f"{free / 2**30:.1f} GiB where {path.name} lives")
    kind = file_system_of(folder)
    if kind in _NETWORK_FILES:
        yield Finding("file system", "bad", f"{kind}: SQLite needs a local one, used by one host")
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > _LARGE_WAL_BYTES:
        size = f"{wal.stat().st_size / 2**30:.1f} GiB"
        yield Finding(
            "write-ahead log", "warning", f"{wal.name} has {size}: a reader that never ends keeps it from shrinking"
        )
    off = _file_clock_off_s(folder)
    if abs(off) > _CLOCK_OFF_S:
        yield Finding("clock", "warning", f"the clock of the file system is {off:+.0f} s off this process's")


def _file_clock_off_s(folder: Path) -> float:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".hivewire-doctor-") as file:
            file.write(b"?")
            file.flush()
            return os.stat(file.name).st_mtime - time.time()
    except OSError:
        return 0.0  # the disk is full, which is told already


def file_system_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The kind of file system that a folder is on; empty where the kernel does not tell."""
    if not mounts.exists():
        return ""
    best, kind = "", ""
    for line in mounts.read_text(errors="replace").splitlines():
        _, where, name, *_ = line.split()
        where = _OCTAL.sub(lambda found: chr(int(found[1], 8)), where)  # a space is written \040
        if Path(where) in (folder, *folder.parents) and len(where) >= len(best):
            best, kind = where, name
    return kind


async def _store(protocol: Protocol, settings: Settings) -> AsyncIterator[Finding]:
    health = await protocol.health()
    yield Finding(
        "reachable",
        "ok" if health.ok else "bad",
        f"{health.backend} answered in {health.latency_s * 1000:.1f} ms" if health.ok else health.detail,
    )
    volatile = health.durability in ("volatile", "unknown")
    lasting = {
        "volatile": "messages vanish with this process or server",
        "unknown": "the server does not tell what it keeps; assume nothing",
        "process": "messages survive the death of every process that uses the store, not of the machine",
        "disk": "a sent message is on the disk",
    }
    detail = f"{health.durability}: {lasting.get(health.durability, '')}"
    yield Finding("durability", "warning" if volatile else "ok", detail)
    for warning in health.warnings:
        yield Finding("store", "warning", warning)
    if health.ok:
        async for finding in _queues(protocol):
            yield finding


async def _queues(protocol: Protocol) -> AsyncIterator[Finding]:
    agents = await protocol.agents()
    depths = {agent: await protocol.depth(agent) for agent in agents}
    waiting = sum(depth.ready for depth in depths.values())
    yield Finding("queues", "ok", f"agents: {len(depths)}, messages that wait: {waiting}")
    dead = {agent: depth.dead for agent, depth in depths.items() if depth.dead}
    if dead:
        most = max(dead, key=dead.__getitem__)
        detail = f"{sum(dead.values())}, most of them ({dead[most]}) of {most}; see `hivewire dead list`"
        yield Finding("dead letters", "warning", detail)
    lost = {agent: depth.lost for agent, depth in depths.items() if depth.lost}
    if lost:
        most = max(lost, key=lost.__getitem__)
        detail = f"{sum(lost.values())} messages were deleted by others, most of them ({lost[most]}) of {most}"
        yield Finding("lost", "bad", f"{detail}: nothing but Hivewire may delete or trim its keys")
    old = {agent: depth.oldest_age_s for agent, depth in depths.items() if depth.oldest_age_s > _OLD_S}
    if old:
        oldest = max(old, key=old.__getitem__)
        detail = f"{oldest}'s oldest message waits for {old[oldest] / 3600:.1f} h: does a worker run?"
        yield Finding("backlog", "warning", detail)
