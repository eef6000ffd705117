"""`hivewire worker`: runs workers, in this process or in several that are kept running."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from hivewire.cli.logs import configure
from hivewire.cli.options import UsageError, add_protocol_option, connect_from, count, duration_s, settings_from
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from types import ModuleType

    from hivewire.coordination.worker import Worker

log = logging.getLogger(__name__)

EXIT_RETRY: Final = 75
"""A supervised process that could not reach the store: start it again later."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", nargs="+", metavar="module:name", help="a Worker, or a list of Workers, in a module")
    parser.add_argument(
        "--processes", type=count, metavar="N", help="run N processes under a supervisor that replaces those that crash"
    )
    parser.add_argument(
        "--grace", type=duration_s, default=10.0, metavar="TIME", help="time to finish what runs after SIGTERM (10s)"
    )
    add_protocol_option(parser)
    parser.add_argument("--supervised", type=int, metavar="FD", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    configure(default="info")
    if args.processes is not None:
        return _supervise(args)
    link = socket.socket(fileno=args.supervised) if args.supervised is not None else None
    if link is not None:
        from hivewire.coordination.serving import stop_with_parent

        stop_with_parent(link)
    try:
        _serve(args, link)
    except BackendError as error:
        if link is None or not error.retryable:
            raise
        log.error("%s", error)
        return EXIT_RETRY
    log.info("stopped")
    return 0


def _serve(args: argparse.Namespace, link: socket.socket | None) -> None:
    from hivewire.cli.supervisor import READY
    from hivewire.coordination.serving import run_until_signal

    settings_from(args)  # a wrong setting is told before the user's module is run
    workers = load_workers(args.workers)
    names = ", ".join(worker.name for worker in workers)

    def ready() -> None:
        log.info("serving %s", names)
        if link is not None:
            link.sendall(READY)

    run_until_signal(workers, lambda: connect_from(args), args.grace, on_ready=ready, second_ends=link is None)


def _supervise(args: argparse.Namespace) -> int:
    from hivewire.cli.supervisor import Supervisor

    if settings_from(args).protocol == "inmemory":
        raise UsageError("memory:// lives in one process; leave --processes away, or use sqlite:///FILE or a server")
    options = ["--grace", str(args.grace)]
    if args.protocol is not None:
        options += ["--protocol", args.protocol]

    def command(fd: int) -> Sequence[str]:
        return [sys.executable, "-m", "hivewire", "worker", *args.workers, *options, "--supervised", str(fd)]

    async def supervise() -> int:
        return await Supervisor(command, args.processes, args.grace).run()

    return asyncio.run(supervise())


def load_workers(references: Sequence[str]) -> list[Worker]:
    """The workers that `module:name` references name; modules of the current folder can be named, too."""
    from hivewire.coordination.worker import Worker, check_together

    found: list[Worker] = []
    for reference in references:
        value = load_attribute(reference)
        listed = list(value) if isinstance(value, list | tuple) else [value]
        if not listed:
            raise UsageError(f"{reference} is an empty list of Workers")
        for worker in listed:
            if not isinstance(worker, Worker):
                raise UsageError(f"{reference} is of type {type(worker).__name__}, not a Worker or a list of Workers")
            worker.check()
            found.append(worker)
    check_together(found)
    return found


def load_attribute(reference: str) -> object:
    """What `module:name` names."""
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise UsageError(f"{reference!r} is not module:name, as in `hivewire worker team:coder`")
    module = _import(module_name)
    value: object = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise UsageError(f"module {module_name} has no {name!r}{_nearest(part, module)}")
        value = getattr(value, part)
    return value


def _import(name: str) -> ModuleType:
    from hivewire.coordination.worker import imported

    try:
        here = os.getcwd()
    except OSError as error:
        raise UsageError(f"the current folder is gone ({error.strerror}): go to another one") from error
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with imported():
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"there is no module {name!r} in {here} or on the Python path") from error
        raise UsageError(f"module {name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        log.debug("import failed", exc_info=True)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = (
            f"{error.filename}:{error.lineno}" if isinstance(error, SyntaxError) else f"{last.filename}:{last.lineno}"
        )
        raise UsageError(f"module {name} cannot be imported: {type(error).__name__}: {error} ({where})") from error


def _nearest(name: str, module: ModuleType) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, [known for known in vars(module) if not known.startswith("_")], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
