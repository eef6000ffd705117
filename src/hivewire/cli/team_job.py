"""What `hivewire run` and `hivewire demo` are asked to do, checked before anything is started."""

from __future__ import annotations

import argparse
import fcntl
import glob
import os
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from hivewire.cli.options import UsageError, add_json_option, count, duration_s, target_of
from hivewire.errors import HivewireError, NoCapableWorker
from hivewire.rules.plan import Plan, parse_plan
from hivewire.rules.plan_state import RunState, new_run

if TYPE_CHECKING:
    from hivewire.coordination.ledger import Ledger
    from hivewire.coordination.roster import Roster

_STATE: Final = "hivewire"
"""The folder inside the out folder that holds what is not a result."""
_LEDGER: Final = "ledger.db"
_MOST_PATHS_BYTES: Final = 200_000
"""The paths are in every message of a run, which may have 1 MiB in all."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the command."""

    command: str
    plan: Plan
    team: str
    paths: list[str]
    out: Path
    protocol: str | None
    """As `--protocol` takes it; None: as the environment or hivewire.toml says."""
    messages: str
    """Where the messages are, for people."""
    has_own_store: bool
    """The messages are in the default file, which belongs to this out folder alone."""
    processes: int
    grace_s: float
    deadline_s: float | None
    choice: str | None
    """`resume`, `new`, or None: resume when there is something to resume."""
    has_chaos: bool = False
    as_json: bool = False
    settings: dict[str, Any] = {}

    @property
    def state_folder(self) -> Path:
        return self.out / _STATE

    @property
    def run_input(self) -> dict[str, Any]:
        return {"paths": self.paths, "out": str(self.out)}


def add_run_options(parser: argparse.ArgumentParser, *, out: str) -> None:
    """The options that `run` and `demo` share."""
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="PATH", help="what to work on: files, folders or patterns"
    )
    parser.add_argument("--out", default=out, metavar="DIR", help=f"where results and the state of the run go ({out})")
    parser.add_argument("--processes", type=count, metavar="N", help="how many worker processes (2 to 4, by the cores)")
    parser.add_argument(
        "--grace", type=duration_s, default=10.0, metavar="TIME", help="time to finish what runs after Ctrl-C (10s)"
    )
    parser.add_argument(
        "--deadline",
        type=duration_s,
        metavar="TIME",
        help="end the run when it is not done so long after its start",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the unfinished run in DIR (the default)")
    again.add_argument("--new", action="store_true", help="start anew, even if a run in DIR is unfinished")
    parser.add_argument(
        "--protocol",
        metavar="TYPE|URL",
        help="memory, sqlite, or a URL such as sqlite:///hive.db; without it the environment and hivewire.toml decide, "
        "else it is a file in DIR",
    )
    add_json_option(parser)


def job_from(args: argparse.Namespace, command: str, plan: Plan, team: str, **fields: Any) -> Job:
    """The job that the options describe. Raises `UsageError`."""
    out = Path(args.out).absolute()
    protocol, messages = _protocol(args.protocol, out / _STATE / "messages.db")
    return Job(
        command=command,
        plan=plan,
        team=team,
        paths=checked_paths(args.input),
        out=out,
        protocol=protocol,
        messages=messages,
        has_own_store=protocol is not None and args.protocol is None and protocol.startswith("sqlite:"),
        processes=args.processes or max(2, min(4, os.cpu_count() or 2)),
        grace_s=args.grace,
        deadline_s=args.deadline,
        choice="resume" if args.resume else "new" if args.new else None,
        as_json=args.json,
        **fields,
    )


def _protocol(asked: str | None, own_file: Path) -> tuple[str | None, str]:
    """What to connect to, and how to call it."""
    from hivewire.settings import load
    from hivewire.settings.targets import hidden

    target, chosen = target_of(asked)
    settings = load(target, **chosen)
    if settings.protocol == "inmemory" and (asked is not None or "protocol" in settings.origins):
        # A name of its own: two runs in one process have nothing to do with one another.
        name = asked if asked is not None and asked.startswith("memory://") else "memory://"
        return (name if name != "memory://" else f"memory://{secrets.token_hex(6)}"), "in this process's memory"
    if asked is not None:
        return asked, hidden(asked)
    if "protocol" in settings.origins:
        return None, f"{settings.protocol}, by {settings.origins['protocol']}"
    return f"sqlite:///{quote(str(own_file))}", str(own_file)


def read_plan(path: str) -> Plan:
    """The plan in a file. Raises `UsageError` or `InvalidPlan`, which name the file."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the plan {path} cannot be read: {error.strerror}") from error
    try:
        return parse_plan(text)
    except HivewireError as error:
        raise UsageError(f"{path}: {error}") from error


def is_memory(protocol: str | None) -> bool:
    """Whether this value of `--protocol` means one process only."""
    from hivewire.settings import load

    target, chosen = target_of(protocol)
    return load(target, **chosen).protocol == "inmemory"


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Nobody else works in this out folder, which is made, meanwhile; a killed process leaves no lock behind."""
    _make_folder(out / _STATE)
    path = out / _STATE / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read(20).strip() or "unknown"
            raise UsageError(
                f"another run (process {owner}) is at work in {out}; wait for it, or name another --out"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def ledger_of(job: Job) -> Ledger:
    """Where the run is kept: a file beside the results; in memory when its messages are there."""
    from hivewire.coordination.ledger import open_ledger

    if is_memory(job.protocol):
        return open_ledger("memory://")
    # Its own file, whatever LEDGER_TYPE says: `--resume` finds it by the folder.
    return open_ledger(f"sqlite:///{job.state_folder / _LEDGER}", migrate=True)


async def choose_run(job: Job, ledger: Ledger, roster: Roster) -> tuple[RunState, bool]:
    """The run to carry out, and whether it had been begun before. Raises `UsageError` or `InvalidPlan`."""
    from hivewire.coordination.ledger.runs import Runs

    runs = Runs(ledger)
    unfinished = await runs.unfinished()
    if unfinished and job.choice != "new":
        state = await runs.load(unfinished[-1])
        if not _is_same(job, state):
            raise another_plan(job.out)
        check_team(state, roster)
        return state, True
    if job.choice == "resume":
        raise UsageError(f"there is no unfinished run in {job.out}; start one without --resume")
    state = new_run(secrets.token_hex(6), job.plan, roster.capabilities, job.run_input, timeout_s=job.deadline_s)
    for run in unfinished:
        await runs.drop(run)
    if job.has_own_store:  # nobody will read what the earlier runs have left in it
        for path in (*job.state_folder.glob("messages.db*"), *job.state_folder.glob("workers.log")):
            path.unlink()
    return state, False


def another_plan(out: Path) -> UsageError:
    """What is said when the run in a folder is not the one that is asked for."""
    return UsageError(
        f"the unfinished run in {out} has another plan or input; give those to go on with it, or --new to start anew"
    )


async def has_unfinished_run(out: Path) -> bool:
    """Whether a run in this folder was begun, kept in a file, and has not ended."""
    from hivewire.coordination.ledger import open_ledger
    from hivewire.coordination.ledger.runs import Runs

    path = out / _STATE / _LEDGER
    if not path.exists():
        return False
    async with open_ledger(f"sqlite:///{path}", migrate=True) as ledger:
        return bool(await Runs(ledger).unfinished())


def check_team(state: RunState, roster: Roster) -> None:
    """Raises `NoCapableWorker` when a run cannot go on with this team."""
    for row in state.rows.values():
        if row.is_open and row.spec.assigned_to not in roster.capabilities:
            raise NoCapableWorker(
                f'run {state.header.run} waits for the capability "{row.spec.assigned_to}", which nobody in this team '
                "has; go on with the team that it was started with, or start anew"
            )


def _is_same(job: Job, state: RunState) -> bool:
    planned = tuple(row.spec for row in state.rows.values() if row.made_by is None)
    return planned == job.plan.subtasks and state.header.input == job.run_input


def checked_paths(paths: Sequence[str]) -> list[str]:
    """Absolute, since workers may run elsewhere. Raises `UsageError` when one names nothing."""
    found = []
    for path in paths:
        full = os.path.abspath(os.path.expanduser(path))
        if not os.path.lexists(full) and not any(glob.iglob(full, recursive=True)):
            raise UsageError(f"--input {path}: there is no such file, folder or match")
        found.append(full)
    if sum(map(len, found)) > _MOST_PATHS_BYTES:
        raise UsageError(
            f"--input names {len(found):,} paths, too many for a message; name folders or quote the pattern"
        )
    return found


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the folder {path}: {error.strerror}") from error


def reports_of(state: RunState) -> Sequence[tuple[str, str]]:
    """(name, path) of the files that the outputs name under `reports`."""
    found: dict[str, str] = {}
    for row in state.rows.values():
        reports = row.output.get("reports") if isinstance(row.output, dict) else None
        if isinstance(reports, dict):
            found.update({str(name): str(path) for name, path in reports.items()})
    return list(found.items())


def checks_of(state: RunState) -> Sequence[str]:
    """What the outputs tell under `checks`: sentences for the user."""
    outputs = [row.output for row in state.rows.values() if isinstance(row.output, dict)]
    return [str(line) for output in outputs if isinstance(output.get("checks"), list) for line in output["checks"]]
