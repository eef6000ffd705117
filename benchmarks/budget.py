"""What a message costs beside time: commands of the server, and how often a process went to sleep in between.

python -m benchmarks.budget PEER WORKLOAD [COUNT]
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import PEERS
from hivewire.bench import pair
from hivewire.bench.peers import make
from hivewire.bench.served import ServedByRedis
from hivewire.coordination.serving import loop_factory


class Budget:
    """What the server has carried out between the two moments at which a run reads its CPU."""

    def __init__(self, peer: ServedByRedis) -> None:
        self._cpu_s = peer.server_cpu_s
        self._peer = peer
        self.looks: list[dict[str, tuple[int, int]]] = []
        self.sleeps: list[int] = []
        peer.server_cpu_s = self._look  # type: ignore[method-assign]  # the run asks there at its beginning and end

    def _look(self) -> float:
        self.looks.append(self._commands())
        self.sleeps.append(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw)
        return self._cpu_s()

    def _commands(self) -> dict[str, tuple[int, int]]:
        """Calls and microseconds of each command."""
        found = {}
        with socket.create_connection(("127.0.0.1", self._peer.server.port), timeout=5) as connection:
            connection.sendall(b"INFO commandstats\r\nQUIT\r\n")
            told = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        for line in told.splitlines():
            name, _, rest = line.partition(":")
            if name.startswith("cmdstat_"):
                parts = dict(part.split("=") for part in rest.split(","))
                found[name.removeprefix("cmdstat_")] = int(parts["calls"]), int(parts["usec"])
        return found


def main(name: str, workload: str, count: int = 5_000) -> None:
    peer = make(PEERS[name])
    assert isinstance(peer, ServedByRedis)
    budget = Budget(peer)
    with tempfile.TemporaryDirectory(prefix="budget-") as folder, asyncio.Runner(loop_factory=loop_factory()) as runner:
        figures = runner.run(pair.measure(peer, workload, count, Path(folder)))
    before, after = budget.looks[0], budget.looks[-1]
    print(f"{name}, {workload}: {figures.cpu_us:.1f} us of client CPU a message, {figures.server_us:.1f} of the server")
    print(f"p50 {figures.p50_ms:.2f} ms; the producer slept {(budget.sleeps[-1] - budget.sleeps[0]) / count:.2f} times")
    for command, (calls, used) in sorted(after.items(), key=lambda item: item[0]):
        called, us = calls - before.get(command, (0, 0))[0], used - before.get(command, (0, 0))[1]
        if called:
            print(f"{called / count:8.3f} {us / count:8.2f} us  {command}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
