"""Whether the unit tests notice a mutant.

The tests are loaded once. Each mutant is then put, in a fork, into the functions and constants that are loaded already,
and those tests are run that call it, the quickest first. What cannot be put so is judged in a fork that loads all anew,
with the mutant in the place of the module.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType

import hypothesis
import pytest

from tests.mutants.making import ROOT, Function, Mutant, path_of

_WALL_S = 120.0
_CPU_S = 10.0
"""Beyond what the tests need with the module as it is."""
MOST_BYTES = 4 << 30
"""Beyond what the process has mapped already: threads of earlier tests alone can have as much."""
_MOST_TESTS_S = 12.0
"""So much is spent on one mutant that survives."""
_CANNOT = 99
_OF_RULES = (
    "test_rules_",
    "test_plan_check",
    "test_plan_edges",
    "test_plan_picture",
    "test_plan_state",
    "test_plan_step",
    "test_planner",
)
"""Where there are such tests, those of what is built on the rules are not asked."""
_OPTIONS = [
    *("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # Hypothesis is loaded before the forks
    *("-o", "addopts=--import-mode=importlib", "-o", "timeout=0"),
]


class TestsFail(Exception):
    """They fail with the module as it is."""


def tests_of(module: str) -> list[str]:
    """The unit tests that name the module, and the examples in its docstrings."""
    named = re.compile(rf"hivewire\.rules\.{module}\b|from hivewire\.rules import [^\n]*\b{module}\b")
    unit = ROOT / "tests" / "unit"
    files = [path for path in sorted(unit.glob("test_*.py")) if named.search(path.read_text(encoding="utf-8"))]
    own = [path for path in files if path.stem.startswith(_OF_RULES)] or files
    examples = f"{unit / 'test_docstrings.py'}::test_the_examples_are_true[hivewire.rules.{module}]"
    has_examples = ">>> " in path_of(module).read_text(encoding="utf-8")
    return [*map(str, own), *([examples] if has_examples else [])]


def survivors(module: str, chosen: Sequence[Mutant]) -> list[Mutant]:
    """Those of the mutants that no test notices."""
    tests = tests_of(module)
    if not tests:
        return list(chosen)
    bench = _Bench(module, chosen)
    code = _run(tests, [bench])
    if not bench.is_done:
        raise TestsFail(f"{module}: its tests fail as it is (exit code {code})")
    left = list(bench.left)
    for mutant in bench.elsewhere:
        if _survives_import(mutant, tests, bench.seconds):
            left.append(mutant)
    return sorted(left, key=lambda mutant: mutant.line)


def _run(tests: Sequence[str], plugins: Sequence[object]) -> int:
    return int(pytest.main([*_OPTIONS, *tests], plugins=[_Profile(), *plugins]))


class _Profile:
    """Properties look for one example that fails, always the same way; they do not make it smaller."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        hypothesis.settings.register_profile(
            "mutants",
            parent=hypothesis.settings.get_profile("hivewire"),
            derandomize=True,
            database=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutants")


class _Bench:
    """A plugin of pytest that runs the tests once as it is, and then some of them for each mutant."""

    def __init__(self, module: str, chosen: Sequence[Mutant]) -> None:
        self._path = str(path_of(module))
        self._chosen = chosen
        self.left: list[Mutant] = []
        self.elsewhere: list[Mutant] = []
        """Those that cannot be put into a loaded function."""
        self.seconds = 0.0
        self.is_done = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        called: dict[Function, list[tuple[float, pytest.Item]]] = {}
        for item in session.items:
            began = time.process_time()
            found = self._calls_of(item)
            if session.testsfailed:
                return True
            took = time.process_time() - began
            self.seconds += took
            for function in found:
                called.setdefault(function, []).append((took, item))
        everything = {id(item): (took, item) for tests in called.values() for took, item in tests}
        for mutant in self._chosen:
            tests = everything.values() if mutant.function is None else called.get(mutant.function, ())
            self._judge(session, mutant, sorted(tests, key=lambda pair: pair[0]))
        self.is_done = True
        return True

    def _calls_of(self, item: pytest.Item) -> set[Function]:
        """Run the test; the functions of the module that it called."""
        found: set[Function] = set()
        path = self._path

        def note(frame: FrameType, event: str, _: object) -> None:
            if frame.f_code.co_filename == path:
                found.add(Function(frame.f_code.co_qualname, frame.f_code.co_firstlineno))

        sys.settrace(note)
        try:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        finally:
            sys.settrace(None)
        return found

    def _judge(self, session: pytest.Session, mutant: Mutant, tests: Sequence[tuple[float, pytest.Item]]) -> None:
        chosen: list[pytest.Item] = []
        seconds = 0.0
        for took, item in tests:
            if chosen and seconds + took > _MOST_TESTS_S:
                break
            chosen.append(item)
            seconds += took

        def notices() -> int:
            if not (_put_constants(mutant) if mutant.function is None else _put(mutant)):
                return _CANNOT
            for item in chosen:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if session.testsfailed:
                    return 1
            return 0

        code = _in_fork(notices, seconds)
        if code == _CANNOT:
            self.elsewhere.append(mutant)
        elif code == 0:
            self.left.append(mutant)


def _put(mutant: Mutant) -> bool:
    """Put the mutant's code into the functions that are loaded. False: it does not fit."""
    assert mutant.function is not None
    path = str(path_of(mutant.module))
    new = [code for code in _codes(mutant.code) if Function(code.co_qualname, code.co_firstlineno) == mutant.function]
    loaded = [
        function
        for function in gc.get_objects()
        if isinstance(function, FunctionType)
        and function.__code__.co_filename == path
        and Function(function.__code__.co_qualname, function.__code__.co_firstlineno) == mutant.function
    ]
    if len(new) != 1 or not loaded:
        return False
    for function in loaded:
        if function.__code__.co_freevars != new[0].co_freevars:
            return False
        function.__code__ = new[0]
    return True


def _put_constants(mutant: Mutant) -> bool:
    """Put what the mutant says on import into the modules that are loaded: plain constants, and the defaults of
    functions. False: nothing of that kind is other than it was."""
    name = f"hivewire.rules.{mutant.module}"
    before = sys.modules[name].__dict__
    after: dict[str, object] = {"__name__": name}
    exec(mutant.code, after)
    changed = {
        key: (before[key], value)
        for key, value in after.items()
        if isinstance(value, int | float | tuple | timedelta) and value != before.get(key)
    }
    for module in list(sys.modules.values()):
        for key, (old, new) in changed.items():
            is_own = getattr(module, "__name__", "") == name
            if (is_own or not key.startswith("_")) and getattr(module, key, None) == old:  # imported by name, too
                setattr(module, key, new)
    functions = {code: function for function, code in _functions(after)}
    count = len(changed)
    for function, code in _functions(before):
        other = functions.get(code)
        if other is not None and _defaults(other) != _defaults(function):
            function.__defaults__, function.__kwdefaults__ = other.__defaults__, other.__kwdefaults__
            count += 1
    return count > 0


def _functions(namespace: dict[str, object]) -> Iterator[tuple[FunctionType, CodeType]]:
    """Those of a module and of its classes."""
    for thing in list(namespace.values()):
        members = list(vars(thing).values()) if isinstance(thing, type) else [thing]
        for member in members:
            if isinstance(member, FunctionType) and member.__module__ == namespace["__name__"]:
                yield member, member.__code__


def _defaults(function: FunctionType) -> tuple[object, object]:
    return function.__defaults__, function.__kwdefaults__


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self._name, self._code = f"hivewire.rules.{mutant.module}", mutant.code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin="mutant")

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)  # it is our own source, changed in one place


def _survives_import(mutant: Mutant, tests: Sequence[str], seconds: float) -> bool:
    def notices() -> int:
        for name in [name for name in sys.modules if name.startswith(("hivewire", "tests.")) and name != __name__]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder(mutant))
        return _run(tests, [])

    return _in_fork(notices, seconds + 5.0) == 0


def _mapped_bytes() -> int:
    """Address space of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _in_fork(work: Callable[[], int], seconds: float) -> int:
    """What `work` returns in a fork that may use so much time of a processor, and some more; a number below 0 or above
    1 if it ends otherwise."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            limit = int(3 * seconds + _CPU_S)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            most_bytes = _mapped_bytes() + MOST_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
            code = work()
        finally:
            os._exit(code)
    end = time.monotonic() + _WALL_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL
