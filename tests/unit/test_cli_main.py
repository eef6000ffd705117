"""The command line itself: help, typing errors, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hivewire.cli import main as cli
from hivewire.cli.main import COMMANDS, main
from hivewire.errors import ConnectionLost, HivewireError
from hivewire.version import __version__


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hivewire {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [(["quees"], "queues"), (["wroker"], "worker"), (["xyzzy"], "--help"), (["--versoin"], "no option")],
)
def test_an_unknown_command_gets_one_sentence(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert hint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_and_refuses_a_wrong_option_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: hivewire {name}" in capsys.readouterr().out
    assert main([name, "--no-such-option"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hivewire {name}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_takes_a_store(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts give it to all of them."""
    assert main([name, "--help"]) == 0
    assert "--protocol TYPE|URL" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["ledger", "status"], ["outbox", "sql"]], ids=" ".join)
def test_a_store_that_is_not_needed_is_looked_at_all_the_same(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([*argv, "--protocol", "nowhere"], [argv[0], "--protocol", "nowhere", *argv[1:]]):
        assert main(words) == 2
        assert "'nowhere'" in capsys.readouterr().err


def test_a_content_without_its_option_is_told_where_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["send", "coder", "--type", "task", '{"n": 1}']) == 2
    assert "--content JSON" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["dead", "list"], ["schedules", "list"], ["delayed", "list", "coder"]])
def test_the_store_is_named_before_an_action_or_after_it(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before, after = [argv[0], "--json", "--protocol", "nosuch", *argv[1:]], [*argv, "--protocol", "nosuch", "--json"]
    assert [main(before), main(after)] == [2, 2]
    assert capsys.readouterr().err.count("--protocol 'nosuch' is neither a URL nor") == 2
    assert main([argv[0], "--json", *argv[1:], "--protocol", "memory"]) == 0
    assert capsys.readouterr().out == "[]\n"


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_descriptor_of_a_store(closed: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'closed.db'}"
    program = f"exec {sys.executable} -m hivewire send closed --protocol {store} {closed}"
    assert subprocess.run(["/bin/sh", "-c", program], cwd=tmp_path, timeout=60, check=False).returncode == 0
    queues = [sys.executable, "-m", "hivewire", "queues", "--json", "--protocol", store]
    found = subprocess.run(queues, cwd=tmp_path, timeout=60, check=True, capture_output=True, text=True).stdout
    assert '"ready": 1' in found


def _command(error: BaseException) -> ModuleType:
    module = ModuleType("hivewire.cli.broken")

    def run(args: object) -> int:
        raise error

    vars(module).update(add_arguments=lambda parser: None, run=run)
    return module


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (HivewireError("append to q: no\nroom"), 2, "hivewire broken: append to q: no room\n"),
        (ExceptionGroup("tasks", [ExceptionGroup("", [ConnectionLost("gone")])]), 2, "hivewire broken: gone\n"),
        (KeyboardInterrupt(), 130, "hivewire broken: interrupted\n"),
    ],
)
def test_an_error_becomes_one_sentence_and_an_exit_code(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "broken", ("hivewire.cli.broken", "fail"))
    monkeypatch.setitem(sys.modules, "hivewire.cli.broken", _command(error))
    assert main(["broken"]) == code
    assert capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "broken", ("hivewire.cli.broken", "fail"))
    for error in (ZeroDivisionError(), ExceptionGroup("tasks", [HivewireError("x"), ZeroDivisionError()])):
        monkeypatch.setitem(sys.modules, "hivewire.cli.broken", _command(error))
        with pytest.raises(type(error)):
            main(["broken"])


def test_a_reader_that_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "hivewire", "--help"],
            check=False,
            env={**os.environ, "PYTHONPATH": "src"},
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_broken_pipe_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "broken", ("hivewire.cli.broken", "fail"))
    monkeypatch.setitem(sys.modules, "hivewire.cli.broken", _command(BrokenPipeError(32, "Broken pipe")))
    assert main(["broken"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_an_answer_that_nobody_read_is_not_a_good_one() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "hivewire", "doctor", "--protocol", "memory://"],
            check=False,
            env={**os.environ, "PYTHONPATH": "src"},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (
        1,
        "hivewire doctor: nobody reads what it prints any more; ended before it was done\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this system")
def test_a_full_disk_is_one_sentence() -> None:
    command = [sys.executable, "-m", "hivewire", "--help"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            command,
            check=False,
            env={**os.environ, "PYTHONPATH": "src"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (2, "hivewire: [Errno 28] No space left on device\n")


def test_the_module_table_matches_the_files() -> None:
    from pathlib import Path

    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert {module.rpartition(".")[2] for module, _ in COMMANDS.values()} <= files
