"""What the servers promise to keep, asked of the servers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hivewire.backend import Durability
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.link import Link, good
from hivewire.errors import BackendError, ConnectionLost

_ASKED = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")
_QUESTIONS: list[Command] = [*(("CONFIG", "GET", name) for name in _ASKED), ("INFO", "persistence")]
_WORST: Sequence[Durability] = ("volatile", "unknown", "process", "disk")


class Kept(msgspec.Struct, frozen=True):
    durability: Durability
    warnings: Sequence[str] = ()


async def ask(link: Link) -> Kept:
    """Of every server that holds messages; what the worst of them keeps counts for all."""
    found = [(name, _of_one(answers)) for name, answers in await link.each(_QUESTIONS)]
    if len(found) == 1:
        return found[0][1]
    worst = min((kept.durability for _, kept in found), key=_WORST.index)
    said: dict[str, list[str]] = {}
    for name, kept in found:
        for warning in kept.warnings:
            said.setdefault(warning, []).append(name)
    return Kept(worst, [f"{', '.join(names)}: {warning}" for warning, names in said.items()])


def _of_one(answers: Sequence[Reply]) -> Kept:
    found: dict[str, str] = {}
    for name, answer in zip(_ASKED, answers, strict=False):
        try:
            flat = good(answer, f"ask for {name}")
        except ConnectionLost:
            raise
        except BackendError as error:
            return _without_config(answers[-1], str(error))
        found.update({flat[at].decode(): flat[at + 1].decode() for at in range(0, len(flat), 2)})
    warnings = []
    if found.get("maxmemory", "0") != "0" and found.get("maxmemory-policy") != "noeviction":
        warnings.append(
            f"maxmemory-policy is {found.get('maxmemory-policy')}: the server may throw messages away; set noeviction"
        )
    if found.get("appendonly") != "yes":
        return Kept("volatile", [*warnings, _NO_FILE])
    if found.get("appendfsync") == "always":
        return Kept("disk", warnings)
    if found.get("appendfsync") == "no":
        warnings.append("appendfsync is no: a power cut may lose what the system has not written to the disk yet")
    else:
        warnings.append(
            "appendfsync is everysec: a power cut, or a kill of the server while the disk is slow, may undo the last"
            " two seconds; `always` does not"
        )
    return Kept("process", warnings)


_NO_FILE = "appendonly is off: messages are lost when the server ends; start it with --appendonly yes"


def _without_config(info: Reply, refused: str) -> Kept:
    """`INFO` says whether there is an append-only file, but not how often it is synced."""
    try:
        text = good(info, "ask what is kept").decode(errors="replace")
    except ConnectionLost:
        raise
    except BackendError:
        return Kept("unknown", [f"the server does not tell whether it keeps messages ({refused}): assume nothing"])
    if "aof_enabled:1" not in text:
        return Kept("volatile", [_NO_FILE])
    return Kept(
        "process", [f"the server does not tell how often it syncs its file ({refused}): a power cut may undo some"]
    )
