"""Changes `rules/` in small ways, one at a time, and looks whether its unit tests notice.

    python -m tests.mutants                 every mutant (an hour and more)
    python -m tests.mutants --each 25       at most 25 of each module, chosen by --seed
    python -m tests.mutants lanes cron      these modules

Prints each survivor as file:line and change, and the part that was killed. A mutant that only equals the original in
another way cannot be killed: `EXPLAINED` names those, with the reason. Exit code 1 below `--least` percent.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parents[1]
RULES = ROOT / "src" / "hivewire" / "rules"
TIMEOUT_S = 60
_REWRITE = "ignore::pytest.PytestAssertRewriteWarning"  # Hypothesis is loaded before the forks

EXPLAINED: dict[str, str] = {
    "elif fetched.died > 1: [fetched.died > 1] => fetched.died >= 1": "1 was asked for before",
}
"""Mutants that mean the same as the original, as they are printed behind the place, and why."""

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_CALCULATED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    module: str
    line: int
    was: str
    code: CodeType
    now: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.was} => {self.now}"


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """Other nodes that could stand here."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in _COMPARED.get(type(node.ops[0]), ()):
            yield ast.Compare(node.left, [other()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in _CALCULATED:
        yield ast.BinOp(node.left, _CALCULATED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.AugAssign) and type(node.op) in _CALCULATED:
        yield ast.AugAssign(node.target, _CALCULATED[type(node.op)](), node.value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Name) and node.id in ("min", "max") and isinstance(node.ctx, ast.Load):
        yield ast.Name("max" if node.id == "min" else "min", ast.Load())


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _places(tree: ast.AST) -> Iterator[tuple[list[tuple[str, int | None]], ast.AST]]:
    """Every node that runs, with the way to it: no annotations, slots or doctests."""

    def walk(
        node: ast.AST, way: list[tuple[str, int | None]]
    ) -> Iterator[tuple[list[tuple[str, int | None]], ast.AST]]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _is_apart(child):
                    here = [*way, (field, index)]
                    yield here, child
                    yield from walk(child, here)

    return walk(tree, [])


def _is_apart(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def mutants(module: str) -> list[Mutant]:
    path = RULES / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    found = []
    for way, node in _places(tree):
        for variant in _variants(node):
            changed = copy.deepcopy(tree)
            at: ast.AST = changed
            for field, index in way[:-1]:
                at = getattr(at, field) if index is None else getattr(at, field)[index]
            field, index = way[-1]
            if index is None:
                setattr(at, field, variant)
            else:
                getattr(at, field)[index] = variant
            ast.copy_location(variant, node)
            ast.fix_missing_locations(changed)
            line = getattr(node, "lineno", 0)
            now = ast.unparse(variant)
            code = compile(changed, str(path), "exec")
            found.append(Mutant(module, line, f"{lines[line - 1].strip()} [{ast.unparse(node)}]", code, now))
    return found


def tests_of(module: str) -> list[str]:
    """The unit tests that name the module: those of rules, where there are any."""
    named = re.compile(rf"hivewire\.rules\.{module}\b|from hivewire\.rules import [^\n]*\b{module}\b")
    files = [path for path in sorted((ROOT / "tests" / "unit").glob("test_*.py")) if named.search(path.read_text())]
    own = [path for path in files if path.stem.startswith("test_rules_")]
    return [str(path) for path in own or files]


class _Loader(importlib.abc.Loader):
    def __init__(self, code: CodeType) -> None:
        self._code = code

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, module.__dict__)  # it is our own source, changed in one place


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, code: CodeType) -> None:
        self._name, self._code = name, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(self._code), origin="mutant")


def survives(mutant: Mutant, tests: Sequence[str]) -> bool:
    """Run the tests in a fork in which the module is the mutant."""
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        sys.meta_path.insert(0, _Finder(f"hivewire.rules.{mutant.module}", mutant.code))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", "-W", _REWRITE]
        os._exit(int(pytest.main([*options, "-o", "addopts=--import-mode=importlib", "-o", "timeout=0", *tests])))
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="of rules/, without .py")
    parser.add_argument("--each", type=int, help="at most so many of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--least", type=float, default=85.0, help="percent")
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    import hypothesis  # noqa: F401  # loaded once, before the forks
    import pytest  # noqa: F401

    modules = args.modules or sorted(path.stem for path in RULES.glob("*.py") if path.stem != "__init__")
    total = killed = 0
    for module in modules:
        tests = tests_of(module)
        chosen = mutants(module)
        if args.each is not None and len(chosen) > args.each:
            chosen = random.Random(f"{args.seed} {module}").sample(chosen, args.each)
        original = Mutant(module, 0, "", compile((RULES / f"{module}.py").read_text("utf-8"), module, "exec"), "")
        if tests and not survives(original, tests):
            print(f"{module}: its tests fail as it is")
            return 2
        left = [mutant for mutant in chosen if survives(mutant, tests)] if tests else chosen
        unexplained = [mutant for mutant in left if str(mutant).partition(": ")[2] not in EXPLAINED]
        total += len(chosen) - (len(left) - len(unexplained))
        killed += len(chosen) - len(left)
        print(f"{module}: {len(chosen) - len(left)} of {len(chosen)} killed by {len(tests)} files", flush=True)
        for mutant in unexplained:
            print(f"  {mutant}", flush=True)
    percent = 100 * killed / max(total, 1)
    print(f"{killed} of {total} killed: {percent:.1f} %")
    return 0 if percent >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
