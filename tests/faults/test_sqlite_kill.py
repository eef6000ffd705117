"""Processes on one SQLite file are killed, or frozen past their lease, at random; every message is accounted for."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.faults.sqlite_worker import LEASE_S

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("HIVEWIRE_KILLS", "12"))


class Team:
    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.database = folder / "q.db"
        self.running: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self) -> None:
        name = f"w{self.started}"
        self.started += 1
        paths = (str(self.database), str(self.folder / f"{name}.journal"), name, str(self.chance.randrange(1 << 30)))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        command = [sys.executable, "-m", "tests.faults.sqlite_worker", *paths]
        self.running.append(subprocess.Popen(command, env=environment, cwd=ROOT))

    def kill_one(self) -> None:
        victim = self.running.pop(self.chance.randrange(len(self.running)))
        victim.kill()
        victim.wait()

    def freeze_one(self) -> None:
        victim = self.chance.choice(self.running)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_S * 1.6)
        victim.send_signal(signal.SIGCONT)

    def finish(self) -> None:
        for process in self.running:
            process.terminate()
        codes = [process.wait(60) for process in self.running]
        assert codes == [0] * len(codes)

    def journal(self) -> list[tuple[float, str, str, str]]:
        lines = []
        for path in self.folder.glob("*.journal"):
            whole, _, _torn = path.read_text().rpartition("\n")  # a kill may tear the last line
            for line in whole.splitlines():
                at, what, id_, key = line.split(" ")
                lines.append((float(at), what, id_, key))
        return sorted(lines, key=lambda line: line[0])


def account(journal: list[tuple[float, str, str, str]]) -> Counter[str]:
    """Counts by kind of event; asserts that nothing was lost, doubled or out of order."""
    sent = {id_ for _, what, id_, _ in journal if what == "sent"}
    tried = {id_ for _, what, id_, _ in journal if what == "try"}
    done: dict[str, float] = {}
    got: dict[str, list[float]] = defaultdict(list)
    first_seen: dict[str, list[int]] = defaultdict(list)
    for at, what, id_, key in journal:
        if what == "done":
            assert id_ not in done, f"{id_} was settled twice"
            done[id_] = at
        elif what == "got":
            assert id_ not in done, f"{id_} came again after its settlement was confirmed"
            if id_ not in got:
                first_seen[key].append(int(id_.split(":")[1]))
            got[id_].append(at)
    assert got.keys() <= tried
    assert not sent - got.keys(), "stored and never handed out"
    for key, numbers in first_seen.items():
        assert numbers == sorted(numbers), f"{key} came out of order"
    return Counter(what for _, what, _, _ in journal)


def check_nothing_is_left(database: Path) -> None:
    db = sqlite3.connect(database)
    for table in ("lanes", "packs", "holes", "scheduled"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert db.execute("SELECT held, in_flight, scheduled FROM queues").fetchall() == [(0, 0, 0)]
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert db.execute("SELECT count(*) FROM dead").fetchone() == db.execute("SELECT dead FROM queues").fetchone()
    db.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_nothing_is_lost_doubled_or_out_of_order(tmp_path: Path, fault: str) -> None:
    seed = int(os.environ.get("HIVEWIRE_SEED", random.randrange(1 << 30)))
    print("seed", seed)
    chance = random.Random(seed)
    team = Team(tmp_path, chance)
    for _ in range(3):
        team.start()
    time.sleep(1.0)
    for _ in range(KILLS if fault == "kill" else max(2, KILLS // 4)):
        time.sleep(chance.random() * 0.7)
        if fault == "kill":
            team.kill_one()
            team.start()
        else:
            team.freeze_one()
    time.sleep(LEASE_S + 2.0)  # the lease of the last victim ends
    team.finish()
    journal = team.journal()
    counts = account(journal)
    print(dict(counts), "processes", team.started)
    assert counts["sent"] > 100
    check_nothing_is_left(team.database)
