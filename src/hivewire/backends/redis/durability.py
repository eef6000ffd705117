"""What the server promises to keep, asked of the server itself."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hivewire.backend import Durability
from hivewire.backends.redis.link import Link, good
from hivewire.errors import BackendError, ConnectionLost


class Kept(msgspec.Struct, frozen=True):
    durability: Durability
    warnings: Sequence[str] = ()


async def ask(link: Link) -> Kept:
    """From the server's configuration; a server that does not tell is taken for one that keeps nothing."""
    found: dict[str, str] = {}
    for name in ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory"):
        (answer,) = await link.post([("CONFIG", "GET", name)])
        try:
            flat = good(answer, f"ask for {name}")
        except ConnectionLost:
            raise
        except BackendError as error:
            return Kept("volatile", (f"the server does not tell whether it keeps anything ({error}): assume nothing",))
        found.update({flat[at].decode(): flat[at + 1].decode() for at in range(0, len(flat), 2)})
    warnings = []
    if found.get("maxmemory", "0") != "0" and found.get("maxmemory-policy") != "noeviction":
        warnings.append(
            f"maxmemory-policy is {found.get('maxmemory-policy')}: the server may throw messages away; set noeviction"
        )
    if found.get("appendonly") != "yes":
        warnings.append("appendonly is off: messages are lost when the server ends; start it with --appendonly yes")
        return Kept("volatile", warnings)
    if found.get("appendfsync") == "always":
        return Kept("disk", warnings)
    if found.get("appendfsync") == "no":
        warnings.append("appendfsync is no: a power cut may lose what the system has not written to the disk yet")
    else:
        warnings.append(
            "appendfsync is everysec: a power cut, or a kill while the disk is slow, may undo the last two seconds;"
            " `always` does not"
        )
    return Kept("process", warnings)
