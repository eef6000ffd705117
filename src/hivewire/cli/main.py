"""The command `hivewire`: finds the command, runs it, and turns what went wrong into one sentence.

Exit codes: 0 done, 1 the answer is bad (something was lost, something is red), 2 the command could not be
carried out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Final, NoReturn

from hivewire.errors import HivewireError
from hivewire.version import __version__

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "demo": ("hivewire.cli.demo", "see a team of agents work through logs, and survive a kill"),
    "run": ("hivewire.cli.run", "have a task done by your own team, by the plan in a file"),
    "worker": ("hivewire.cli.worker", "run workers, in as many processes as you like"),
    "send": ("hivewire.cli.send", "send one message"),
    "tail": ("hivewire.cli.tail", "watch an agent's queue, or take messages from it"),
    "queues": ("hivewire.cli.queues", "list the agents and how much waits for each"),
    "dead": ("hivewire.cli.dead", "list, show, replay or purge dead letters"),
    "schedules": ("hivewire.cli.schedules", "list, add or remove messages that are sent again and again"),
    "delayed": ("hivewire.cli.delayed", "list or cancel messages that are not due yet"),
    "cleanup": ("hivewire.cli.cleanup", "forget what is kept for recognising repeats, and give space back"),
    "explain": ("hivewire.cli.explain", "tell the life of one message, and where it is now"),
    "ledger": ("hivewire.cli.ledger", "the ledger's tables: status, upgrade, downgrade, purge"),
    "outbox": ("hivewire.cli.outbox", "messages in your own transactions: tables, relay, what waits"),
    "budget": ("hivewire.cli.budget", "tell what models have cost, by day, month, run or label"),
    "loadtest": ("hivewire.cli.loadtest", "send at a fixed rate; count what is lost, doubled, out of order"),
    "bench": ("hivewire.cli.bench", "measure what a message costs here, beside raw loops without an engine"),
    "doctor": ("hivewire.cli.doctor", "check what is reachable, durable, misconfigured"),
    "config": ("hivewire.cli.config", "print the settings in force, and where each comes from"),
}
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_JUDGES: Final = frozenset({"hivewire run", "hivewire demo", "hivewire loadtest", "hivewire bench", "hivewire doctor"})
"""Commands whose exit code is an answer: it must not say that all is well when it is not known."""

_STRAY: Final = {"hivewire send": "what is sent is given with --content JSON, --text TEXT or --bytes FILE"}
"""What is said of an argument that belongs to nothing."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an option in one sentence, without the usage lines."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments") and self.prog in _STRAY:
            message = f"{message}; {_STRAY[self.prog]}"
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: hivewire COMMAND [options]\n\n"
        "Messaging and coordination for teams of software agents.\n\n"
        f"{commands}\n\n"
        "`hivewire COMMAND --help` explains a command; `hivewire --version` prints the version.\n"
    )


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean `hivewire {near[0]}`?" if near else "`hivewire --help` lists them"
    kind = "option" if name.startswith("-") else "command"
    return f"hivewire: there is no {kind} {name!r}; {hint}\n"


def _run_command(name: str, rest: Sequence[str]) -> int:
    module, text = COMMANDS[name]
    command = import_module(module)
    parser = _Parser(prog=f"hivewire {name}", description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    command.add_arguments(parser)
    args = parser.parse_args(rest)
    _log_to_stderr()
    code: int = command.run(args)
    sys.stdout.flush()  # here, so that a closed pipe is noticed while it can still be handled
    return code


def _log_to_stderr() -> None:
    from hivewire.cli.logs import configure

    configure()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside a task group's error, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _explain(error: BaseException, prog: str) -> int:
    """Turn an error into its exit code; one that is not the user's goes on, with its traceback."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves) and _is_stdout_unread():
        _silence_stdout()
        if prog not in _JUDGES:
            return 0  # as in `hivewire queues | head`
        sys.stderr.write(f"{prog}: nobody reads what it prints any more; ended before it was done\n")
        return EXIT_FAILED
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        sys.stderr.write(f"{prog}: interrupted\n")
        return EXIT_INTERRUPTED
    for leaf in leaves:
        if not isinstance(leaf, HivewireError | OSError):
            raise error
    if isinstance(leaves[0], OSError):
        _silence_stdout()  # it may be what failed: a full disk
    sys.stderr.write(f"{prog}: {' '.join(str(leaves[0]).split())}\n")
    return EXIT_USAGE


def _is_stdout_unread() -> bool:
    """Whether the reader of our output is gone. A pipe or socket that broke elsewhere is another matter."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _silence_stdout() -> None:
    """Nothing more may be written, not even by the interpreter's last flush."""
    with suppress(OSError, ValueError):  # there is none, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Where a daemon was started with some of them closed, the next file that is opened would get their numbers, and
    what is printed: a store, for example."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  # as long as the process
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that does not know a letter, as stderr does


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    prog = f"hivewire {name}" if name in COMMANDS else "hivewire"
    try:
        if name in ("--help", "-h", "help"):
            sys.stdout.write(_overview())
        elif name in ("--version", "-V"):
            sys.stdout.write(f"hivewire {__version__}\n")
        elif name not in COMMANDS:
            sys.stderr.write(_unknown(name))
            return EXIT_USAGE
        else:
            return _run_command(name, arguments[1:])
        sys.stdout.flush()
        return 0
    except SystemExit as exit_:  # argparse, after --help or a wrong option
        return exit_.code if isinstance(exit_.code, int) else 0
    except (HivewireError, OSError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _explain(error, prog)
