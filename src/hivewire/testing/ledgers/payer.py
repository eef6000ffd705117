"""A process that has effects, and dies in the middle of one when it is told to.

`python -m hivewire.testing.ledgers.payer URL SETTINGS PATH FIRST LAST DIES`
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import msgspec

from hivewire.coordination.effects import LedgerEffects
from hivewire.coordination.ledger import open_ledger


async def write(path: Path, key: str, dies: bool) -> str:
    """The effect: a line in a file."""
    with path.open("a") as file:
        file.write(f"{key}\n")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return "written"


async def look(path: Path, key: str) -> str | None:
    """Whether it has happened."""
    return "found" if path.exists() and key in path.read_text().split() else None


async def main(url: str, settings: str, path: Path, numbers: range, dies: bool) -> None:
    async with open_ledger(url, **msgspec.json.decode(settings)) as ledger:
        effects = LedgerEffects(ledger, lease_s=1.0)
        for n in numbers:
            key = f"line-{n}"
            await effects.once(key, partial(write, path, key, dies), partial(look, path, key))


if __name__ == "__main__":
    url, settings, path, first, last, dies = sys.argv[1:]
    asyncio.run(main(url, settings, Path(path), range(int(first), int(last)), dies == "1"))
