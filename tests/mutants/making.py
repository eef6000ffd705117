"""Small changes to a module of `rules/`, one at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
RULES = ROOT / "src" / "hivewire" / "rules"

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


class Function(msgspec.Struct, frozen=True):
    """A function of the module, or a method, not one inside another."""

    qualname: str
    line: int


class Mutant(msgspec.Struct, frozen=True):
    """One change. Two changes with the same `text` are told apart by `line`."""

    module: str
    line: int
    text: str
    """The line as it was, [the part of it] and what stands there now."""
    code: CodeType
    """The whole module."""
    function: Function | None
    """None: it is run as the module is imported."""


def modules() -> list[str]:
    """The modules of `rules/`."""
    return sorted(path.stem for path in RULES.glob("*.py") if path.stem != "__init__")


def path_of(module: str) -> Path:
    return RULES / f"{module}.py"


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of the module, in the order of its source."""
    path = path_of(module)
    source = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    for place in _places(tree, None, []):
        for variant in _variants(place.node):
            ast.fix_missing_locations(ast.copy_location(variant, place.node))
            line = getattr(place.node, "lineno", 0)
            text = f"{lines[line - 1].strip()} [{ast.unparse(place.node)}] => {ast.unparse(variant)}"
            place.set(variant)
            code = compile(tree, str(path), "exec")
            place.set(place.node)
            yield Mutant(module, line, text, code, place.function)


class _Place(msgspec.Struct):
    parent: ast.AST
    field: str
    index: int | None
    node: ast.AST
    function: Function | None

    def set(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def _places(parent: ast.AST, function: Function | None, classes: list[str]) -> Iterator[_Place]:
    """Every node that runs: no annotations, slots or docstrings, and nothing else that only the type checker holds."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        inner = function
        if function is None and field == "body":
            inner = _function(parent, classes)
        within = [*classes, parent.name] if isinstance(parent, ast.ClassDef) else classes
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_apart(child):
                yield _Place(parent, field, index, child, inner)
                yield from _places(child, inner, within)


def _function(node: ast.AST, classes: list[str]) -> Function | None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return Function(".".join([*classes, node.name]), first)
        case ast.Lambda():
            return Function(".".join([*classes, "<lambda>"]), node.lineno)
    return None


def _is_apart(node: ast.AST) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg in ("frozen", "kw_only", "gc")
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _variants(node: Any) -> Iterator[ast.AST]:
    """Other nodes that could stand here."""
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARED.get(type(op), ()):
                yield ast.Compare(node.left, [other()], node.comparators)
        case ast.BinOp() if type(node.op) in _CALCULATED:
            yield ast.BinOp(node.left, _CALCULATED[type(node.op)](), node.right)
        case ast.AugAssign() if type(node.op) in _CALCULATED:
            yield ast.AugAssign(node.target, _CALCULATED[type(node.op)](), node.value)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Name(id="min" | "max", ctx=ast.Load()):
            yield ast.Name("max" if node.id == "min" else "min", ast.Load())
