"""`hivewire bench`: what a message costs here, beside raw loops that have no engine, in one run."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hivewire.cli.options import Progress, UsageError, add_json_option, count, duration_s

if TYPE_CHECKING:
    from hivewire.bench.report import Report

_DEFAULT: Final = ("memory", "sqlite")
_SCHEMES: Final = {"memory": "memory", "inmemory": "memory", "sqlite": "sqlite", "redis": "redis", "kafka": "kafka"}
_WORKLOADS: Final = ("W1", "W2", "W3a", "W3b", "W4", "W5", "W6")
IDLE: Final = "idle"
_AGENTS: Final = 10_000
_EPILOG: Final = """\
workloads: W1 one producer, each send awaited; W2 one producer, all the batching there is; W3a, W3b 10 and 100
producers (W3: both); W4 1,000 messages a second whether or not those before are stored, latency from when each was
to be sent; W5 100 agents in one consumer process; W6 requests, one after another; idle: memory of idle agents.
memory and SQLite: producer and consumer in one process; Redis, Kafka: a process each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--protocol",
        "--backend",
        metavar="TYPE|URL",
        action="append",
        help="memory, sqlite, redis or kafka (a server of its own is started for the time), sqlite:///FILE (files are "
        "made in that folder, and removed), or a server's URL; several times for several (memory and sqlite)",
    )
    parser.add_argument(
        "--workload", metavar="NAME", action="append", type=_workloads, help="W1 to W6, idle, or several (all)"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="alternating rounds (3)")
    parser.add_argument("--scale", type=_scale, default=1.0, metavar="X", help="times the counts of messages (1)")
    parser.add_argument(
        "--within", type=duration_s, default=600.0, metavar="TIME", help="begin no round that would end later (10m)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write the plots as a picture")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep CPU over raw as the baseline for --compare")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="exit 1 if a message costs more than by this file")
    parser.add_argument(
        "--tolerance", type=_scale, default=20.0, metavar="PERCENT", help="how much more with --compare (20)"
    )
    add_json_option(parser)


def _workloads(text: str) -> list[str]:
    known = {name.lower(): [name] for name in (*_WORKLOADS, IDLE)} | {"w3": ["W3a", "W3b"]}
    found = []
    for name in text.split(","):
        if name.strip().lower() not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is no workload; there are W1, W2, W3, W3a, W3b, W4, W5, W6, idle"
            )
        found += known[name.strip().lower()]
    return found


def _scale(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _backends(protocols: Sequence[str] | None) -> dict[str, str]:
    """What to measure, and where: nothing for a place of our own, else a folder or a URL."""
    found = {}
    for text in protocols or _DEFAULT:
        name, is_url, rest = text.partition("://")
        backend = _SCHEMES.get(name.lower())
        if backend is None:
            raise UsageError(f"--protocol {text!r}: there is a bench for memory, sqlite, redis, kafka and their URLs")
        found[backend] = "" if not is_url or backend == "memory" else text
        if is_url and backend == "sqlite":
            folder = Path(rest.removeprefix("/")).absolute().parent
            if not folder.is_dir():
                raise UsageError(f"there is no folder {str(folder)!r}")
            found[backend] = str(folder)
    return found


@contextmanager
def _servers(places: dict[str, str]) -> Iterator[dict[str, str]]:
    """The places, with a Kafka of our own where none is named: one takes seconds to start. Raises `UsageError`
    before the first run where a server or its client is missing."""
    from hivewire.testing.servers import ServerMissing, redis_program

    try:
        with ExitStack() as stack:
            if "redis" in places:
                _import("hiredis", "redis")
                if not places["redis"]:
                    redis_program()
            if "kafka" in places:
                _import("confluent_kafka", "kafka")
                if not places["kafka"]:
                    from hivewire.bench.served import shared_broker

                    places = {**places, "kafka": stack.enter_context(shared_broker())}
            yield places
    except ServerMissing as missing:
        raise UsageError(f"{missing}; install one, or name a running one with --protocol URL") from missing


def _import(module: str, extra: str) -> None:
    try:
        __import__(module)
    except ImportError:
        raise UsageError(f"--protocol {extra} needs {module}: pip install 'hivewire[{extra}]'") from None


def run(args: argparse.Namespace) -> int:
    from hivewire.bench import baseline

    for path in (args.report, args.plot, args.save):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"there is no folder {str(path.parent)!r} for {path.name}")
    known = None if args.compare is None else baseline.load(args.compare)
    with _servers(_backends(args.protocol)) as places:
        report = _measure(args, places)
    verdicts = [] if known is None else baseline.compare(report.ratios, known, args.tolerance / 100)
    report.verdicts += verdicts
    _write(args, report)
    if known is not None and not verdicts:
        raise UsageError(f"{args.compare} knows none of the pairs of this run; `--save` adds them")
    return 0 if report.is_good else 1


def _measure(args: argparse.Namespace, places: dict[str, str]) -> Report:
    from hivewire.bench.machine import machine
    from hivewire.bench.peers import PEERS
    from hivewire.bench.plan import entries
    from hivewire.bench.report import make_report
    from hivewire.bench.rounds import run_idle, run_rounds
    from hivewire.settings.targets import hidden

    progress = Progress()
    workloads = [name for names in args.workload or [[*_WORKLOADS, IDLE]] for name in names]
    before, started = machine(), time.time()
    agents = max(int(_AGENTS * min(args.scale, 1.0)), 100)
    idle, failures = run_idle(places, agents, say=progress.show) if IDLE in workloads else ([], [])
    runs = run_rounds(
        entries(list(places), workloads),
        PEERS,
        rounds=args.rounds,
        scale=args.scale,
        within_s=args.within - (time.time() - started),
        places=places,
        say=progress.show,
    )
    runs.failures += failures
    progress.clear()
    return make_report(
        shlex.join(["hivewire", "bench", *(hidden(word) if "@" in word else word for word in sys.argv[2:])]),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        time.time() - started,
        before,
        runs,
        idle=idle,
    )


def _write(args: argparse.Namespace, report: Report) -> None:
    import msgspec

    from hivewire.bench import baseline
    from hivewire.bench.plot import page, picture
    from hivewire.bench.report import table

    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(table(report))
    for path, content in ((args.report, page), (args.plot, picture)):
        if path is not None:
            path.write_text(content(report), encoding="utf-8")
            sys.stderr.write(f"written: {path}\n")
    if args.save is not None:
        baseline.save(report, args.save)
        sys.stderr.write(f"baseline: {args.save}\n")
