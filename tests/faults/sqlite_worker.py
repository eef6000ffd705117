"""A process that sends, takes and settles at random, and writes down what it did; it may be killed at any point.

Run as `python -m tests.faults.sqlite_worker DATABASE JOURNAL NAME SEED`. A line of the journal is written
with one system call, so a kill cuts between lines: `time what id key`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence, Set
from typing import Any

from hivewire.backend import Again, Append, Back, Dead, Fetched, Letter, Member, Ownership, Record, Saved, Unfinished
from hivewire.backends.sqlite import SQLiteBackend
from hivewire.errors import BackendError
from hivewire.settings import Settings

LEASE_S = 1.0
KEYS = 5
LETTER = Letter(reason="rejected", error="", attempts=1, first_at=0.0, worker="w")


class Owner(Ownership):
    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Any] = ()) -> None: ...

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        return {}

    def lost(self, shards: Set[int]) -> None: ...


class Worker:
    def __init__(self, backend: SQLiteBackend, journal: int, name: str, seed: int) -> None:
        self.backend = backend
        self.journal = journal
        self.name = name
        self.chance = random.Random(seed)
        self.stopping = False

    def note(self, what: str, *records: Record, now: float | None = None) -> None:
        now = now or time.monotonic()
        os.write(self.journal, "".join(f"{now:.6f} {what} {r.id} {r.key}\n" for r in records).encode())

    async def send(self) -> None:
        number = 0
        while not self.stopping:
            records = []
            for _ in range(self.chance.choice((1, 1, 3, 40))):
                key = f"{self.name}.{self.chance.randrange(KEYS)}"
                records.append(Record(f"{self.name}:{number}", key, os.urandom(self.chance.choice((10, 400, 9_000)))))
                number += 1
            self.note("try", *records)
            try:
                assert not await self.backend.append([Append("q", records)])
            except BackendError:
                continue  # not stored
            self.note("sent", *records)
            await asyncio.sleep(self.chance.random() * 0.004)

    async def take(self) -> None:
        consumer = await self.backend.consume("q", Member(name=self.name, lease_s=LEASE_S), Owner())
        chance = self.chance
        while True:
            limit = chance.choice((1, 7, 200))
            taken = list(
                await consumer.fetch(limit, 0.5, lanes=chance.choice((1, 4, 100)), starting=chance.choice((0, 3)))
            )
            if not taken and self.stopping:
                break
            # As the engine does: who was frozen on the way here looks at its lease before it begins.
            now = time.monotonic()
            taken = [fetched for fetched in taken if consumer.holds(fetched)]
            self.note("got", *(fetched.record for fetched in taken), now=now)
            while taken:
                part = self._some(taken)
                done, rest = self._outcomes(part)
                refused = await consumer.settle(done, rest)
                gone = [*done, *(outcome.fetched for outcome in rest if isinstance(outcome, Dead))]
                self.note("done", *(fetched.record for fetched in gone if fetched not in refused))
        await consumer.close()

    def _some(self, taken: list[Fetched]) -> list[Fetched]:
        number = self.chance.choice((1, len(taken), max(1, len(taken) // 2)))
        part = taken[:number]
        del taken[:number]
        return part

    def _outcomes(self, part: list[Fetched]) -> tuple[list[Fetched], list[Unfinished]]:
        """A lane that is given back is given back from there on, as the engine does."""
        done: list[Fetched] = []
        rest: list[Unfinished] = []
        stopped: set[str] = set()
        for fetched in part:
            luck = 1.0 if self.stopping else self.chance.random()
            if fetched.record.key in stopped:
                rest.append(Back(fetched))
            elif luck < 0.03:
                stopped.add(fetched.record.key)
                rest.append(Again(fetched, 0.01))
            elif luck < 0.06:
                rest.append(Dead(fetched, LETTER))
            else:
                done.append(fetched)
        return done, rest

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, self, "stopping", True)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.send())
            group.create_task(self.take())
            group.create_task(self.take())


async def main(database: str, journal: str, name: str, seed: str) -> None:
    backend = SQLiteBackend(Settings(protocol="sqlite", url=f"sqlite:///{database}"))
    await backend.open()
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    await Worker(backend, descriptor, name, int(seed)).run()
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
