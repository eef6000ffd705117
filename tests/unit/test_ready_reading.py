"""What is found in the texts of models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.teams.ready.reading import (
    Citation,
    citations_of,
    code_of,
    confidence_of,
    rating_of,
    sources_of,
    word_count,
)

WRITTEN = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
LINES = st.lists(
    st.text("abc ()=:.{}`", max_size=20).filter(lambda line: not line.lstrip().startswith("```")), max_size=8
)


@given(
    LINES,
    st.sampled_from(["python", "go", "c++", "objective-c"]),
    WRITTEN.filter(lambda text: "`" not in text and "~" not in text),
)
def test_a_fenced_block_comes_out_as_it_was(lines: list[str], language: str, around: str) -> None:
    body = "".join(f"{line}\n" for line in lines)
    found = code_of(f"{around}\n```{language}\n{body}```\n{around}")
    assert (found.code, found.language) == (body, language)


@pytest.mark.parametrize(
    ("text", "code", "language"),
    [
        ("def f():\n    return 1", "def f():\n    return 1", "python"),
        ("```\nSELECT 1\n```", "SELECT 1\n", "sql"),
        ("```python\na = 1\n```\nand\n```bash\nls\n```\nand\n```python\nb = 2\n```", "a = 1\n\nb = 2\n", "python"),
        ("```python\nx = '''\n``` inside\n'''\n```", "x = '''\n``` inside\n'''\n", "python"),
        ("````md\n```py\n1\n```\n````", "```py\n1\n```\n", "md"),
        ("```go\npackage main", "package main", "go"),
        ("nothing here", "nothing here", "text"),
        ("", "", "text"),
    ],
)
def test_code(text: str, code: str, language: str) -> None:
    found = code_of(text)
    assert (found.code, found.language) == (code, language)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 8/10", 8.0),
        ("**Rating:** 4/5", 8.0),
        ("Overall rating: 7.5 out of 10.", 7.5),
        ("On 11/12 we met. Rating is 9/10", 9.0),
        ("Score: 85%", 8.5),
        ("Grade: B+", 8.5),
        ("grade A", 9.5),
        ("Rating: very good", 8.5),
        ("I give it ★★★★☆", 8.0),
        ("⭐⭐⭐", 6.0),
        ("I would say 3 out of 5.", 6.0),
        ("4 stars", 8.0),
        ("Rating: 12/10", None),
        ("Rating: 0/0", None),
        ("see 3/4 of it", None),
        ("1/2/2024", None),
        ("a good text", None),
        ("", None),
    ],
)
def test_ratings(text: str, rating: float | None) -> None:
    assert rating_of(text) == rating


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("Confidence: 85%", 0.85),
        ("confidence is 0.7", 0.7),
        ("Confidence level: high", 0.85),
        ("**Confidence**: 9/10", 0.9),
        ("Confidence: 85", 0.85),
        ("Confidence: 850", None),
        ("very sure", None),
        ("", None),
    ],
)
def test_confidence(text: str, confidence: float | None) -> None:
    assert confidence_of(text) == confidence


def test_sources_and_citations() -> None:
    text = (
        "See [2], http://a.example/x?y=1&z=2. Also (https://b.example/p_(q)) and http://a.example/x?y=1&z=2!\n"
        "[2] Second\n- [1]: First, http://c.example\n[2] again"
    )
    assert sources_of(text) == ["http://a.example/x?y=1&z=2", "https://b.example/p_(q)", "http://c.example"]
    assert citations_of(text) == [Citation(1, "First, http://c.example"), Citation(2, "Second")]
    assert word_count("  two\nwords ") == 2


@given(WRITTEN)
def test_no_text_breaks_a_rule(text: str) -> None:
    code_of(text), sources_of(text), citations_of(text), word_count(text)
    rating, confidence = rating_of(text), confidence_of(text)
    assert rating is None or 0 <= rating <= 10
    assert confidence is None or 0 <= confidence <= 1


@pytest.mark.parametrize(
    "text",
    [
        "```" * 50_000,
        "rating " * 20_000,
        "confidence: " * 20_000,
        "1/" * 50_000,
        "[1] " * 50_000,
        "https://" * 20_000,
        "★" * 100_000,
    ],
)
def test_long_texts_cost_no_more_than_their_length(text: str) -> None:
    """A pattern that backtracks would not come to an end within the test's time."""
    code_of(text), sources_of(text), citations_of(text), rating_of(text), confidence_of(text)
