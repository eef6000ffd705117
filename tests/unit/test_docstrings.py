"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[2] / "src"
_MODULES = [
    ".".join(path.relative_to(_SOURCE).with_suffix("").parts)
    for path in sorted((_SOURCE / "hivewire").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8") and path.stem != "__init__"
]


@pytest.mark.parametrize("name", _MODULES)
def test_the_examples_are_true(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
