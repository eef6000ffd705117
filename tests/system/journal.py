"""A team whose handlers tell each start and end through a pipe, and wait when they are told to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MODULE = """
import json, os, time
from pathlib import Path
import hivewire as hw

HERE = Path(__file__).parent
WORK = hw.Worker("work", capabilities=["work"], concurrency=1)


def tell(**what):
    with open(HERE / "journal", "wb", buffering=0) as pipe:
        pipe.write(json.dumps({"pid": os.getpid(), **what}).encode() + b"\\n")


@WORK.on("task", retry=hw.Retry(max_attempts=2, first_s=0.0, most_s=0.0))
def work(task, ctx):
    name = task.content["subtask"]
    settings = task.content["input"]
    tell(start=name)
    if settings.get("fails"):
        raise ValueError("as it was told")
    if settings.get("waits"):
        while not (HERE / "go").exists():
            time.sleep(0.01)
    tell(end=name)
    return {"subtasks": settings.get("makes", []), "by": os.getpid()}


TEAM = [WORK]
"""


def subtask(name: str, *after: str, **input_: Any) -> dict[str, Any]:
    """A subtask for this team."""
    return {"name": name, "assigned_to": "work", "dependencies": list(after), "input": input_}


class Journal:
    """The team in a folder, and what its handlers tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "journalled.py").write_text(MODULE)
        os.mkfifo(folder / "journal")
        # Open for writing, too: so nobody waits for a partner, and there is never an end of the file.
        self._pipe = os.fdopen(os.open(folder / "journal", os.O_RDWR), "rb", buffering=0)
        self.starts: list[str] = []
        self.ends: list[str] = []
        self.pids: dict[str, int] = {}

    def plan(self, *subtasks: dict[str, Any], name: str = "plan.json") -> None:
        """Write the plan."""
        (self.folder / name).write_text(json.dumps({"subtasks": subtasks}))

    def next(self) -> dict[str, Any]:
        """What is told next; waits for it."""
        told: dict[str, Any] = json.loads(self._pipe.readline())
        if "start" in told:
            self.starts.append(told["start"])
            self.pids[told["start"]] = told["pid"]
        else:
            self.ends.append(told["end"])
        return told

    def until_start(self, name: str) -> int:
        """Wait until this subtask has been started; the process that did."""
        while (told := self.next()).get("start") != name:
            pass
        return int(told["pid"])

    def rest(self) -> None:
        """Read what has been told and not been read. Nobody may be at work any more."""
        os.set_blocking(self._pipe.fileno(), False)
        while self._pipe_has_more():
            self.next()
        os.set_blocking(self._pipe.fileno(), True)

    def let_go(self) -> None:
        """Those that wait go on."""
        (self.folder / "go").touch()

    def close(self) -> None:
        self._pipe.close()

    def _pipe_has_more(self) -> bool:
        import select

        return bool(select.select([self._pipe], [], [], 0)[0])
