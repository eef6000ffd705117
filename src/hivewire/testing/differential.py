"""One seeded program on a store and on memory, which is the model: what is seen must be the same.

    python -m hivewire.testing.differential --seed 7 --operations 2000 redis://localhost:6379/15

The store must be empty. A seed with a difference is printed, replays, and is made smaller where a fresh store can
be had (`smallest`; for a server, in a test).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import msgspec

from hivewire.factory import connect
from hivewire.testing.differential_program import Operation, as_promised, draw
from hivewire.testing.differential_side import Seen, Side

_MOST_TRIES: Final = 60

Store = Callable[[], AbstractAsyncContextManager[str]]
"""Gives the URL of a store of its own, empty, each time."""


class Difference(msgspec.Struct, frozen=True):
    """The first operation of which something else was seen than on memory."""

    at: int
    operation: Operation
    memory: Seen
    store: Seen

    def __str__(self) -> str:
        return f"operation {self.at}, {self.operation}\n  memory: {self.memory}\n  store:  {self.store}"


async def compare(program: Sequence[Operation], url: str, **settings: Any) -> Difference | None:
    """Run the program in step on memory and on the store."""
    async with memory_store() as memory, Side(memory, **settings) as model, Side(url, **settings) as side:
        for at, operation in enumerate(as_promised(program, side.features)):
            expected = await model.do(operation)
            seen = await side.do(operation, expected)
            if seen != expected:
                return Difference(at, operation, expected, seen)
    return None


async def smallest(program: Sequence[Operation], store: Store, tries: int = _MOST_TRIES) -> tuple[Operation, ...]:
    """Leave out operations for as long as some difference stays."""
    kept = tuple(program)
    size = max(1, len(kept) // 2)
    while tries > 0:
        start, before = 0, kept
        while start < len(kept) and tries > 0:
            tries -= 1
            candidate = kept[:start] + kept[start + size :]
            async with store() as url:
                found = await compare(candidate, url)
            if found is None:
                start += size
            else:
                kept = candidate[: found.at + 1]
        if size == 1 and kept == before:
            break
        size = max(1, size // 2)
    return kept


async def check(seed: int, count: int, store: Store) -> str | None:
    """None: nothing differs. Else what differs, how to see it again, and the smallest program that shows it."""
    program = draw(seed, count)
    async with store() as url:
        found = await compare(program, url)
    if found is None:
        return None
    lines = [f"seed {seed}, {count} operations: {found}", "smallest:"]
    lines += [f"  {operation}" for operation in await smallest(program[: found.at + 1], store)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when something differs."""
    parser = argparse.ArgumentParser(prog="python -m hivewire.testing.differential", description=__doc__)
    parser.add_argument("url", help="an empty store; what is sent there stays there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=2_000)
    options = parser.parse_args(argv)
    found = asyncio.run(compare(draw(options.seed, options.operations), options.url))
    if found is None:
        print(f"seed {options.seed}: the same in {options.operations} operations", file=sys.stderr)
        return 0
    print(f"DIFFERS seed {options.seed}: {found}")
    return 1


@asynccontextmanager
async def memory_store() -> AsyncIterator[str]:
    """Memory itself. It is there for as long as somebody is connected."""
    url = f"memory://{uuid4().hex}"
    async with connect(url):
        yield url


if __name__ == "__main__":
    sys.exit(main())
