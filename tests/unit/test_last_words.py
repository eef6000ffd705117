"""What is told of a traceback in one line is what was raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from hivewire.errors import last_words


def _plain() -> None:
    raise ValueError("no")


def _of_several_lines() -> None:
    raise ValueError("no\nway\n  indented")


def _after_another() -> None:
    try:
        _plain()
    except ValueError as error:
        raise LookupError("nobody") from error


def _of_a_group() -> None:
    try:
        _of_several_lines()
    except ValueError as error:
        raise ExceptionGroup("two of them", [TypeError("odd"), ExceptionGroup("inner", [error])]) from None


def _without_a_text() -> None:
    raise TimeoutError


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (_plain, "ValueError: no"),
        (_of_several_lines, "ValueError: no way indented"),
        (_after_another, "LookupError: nobody"),
        (_of_a_group, "ValueError: no way indented"),
        (_without_a_text, "TimeoutError"),
    ],
)
def test_the_exception_is_said(fails: Callable[[], None], said: str) -> None:
    try:
        fails()
    except Exception:
        assert last_words(traceback.format_exc()) == said
    else:
        pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", ""), ("\n \n", ""), ("no good", "no good"), ("first\n last \n", "last"), ("x" * 600, "x" * 499 + "…")],
)
def test_of_any_other_text_it_is_the_last_line(text: str, said: str) -> None:
    assert last_words(text) == said
