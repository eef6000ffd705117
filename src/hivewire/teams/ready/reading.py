"""What is found in the text of a model's answer: code, sources, ratings, by plain rules."""

from __future__ import annotations

import re
from typing import Final

import msgspec


class Code(msgspec.Struct, frozen=True):
    """A block of code and the name of its language; "text" when nobody says."""

    code: str
    language: str


class Citation(msgspec.Struct, frozen=True):
    """A numbered reference, `[3] Lamport 1978`, and what stands behind the number."""

    number: int
    text: str


_FENCE: Final = re.compile(
    r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*\n(.*?)^[ ]{0,3}\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE
)
_OPEN_FENCE: Final = re.compile(r"^[ ]{0,3}(?:`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*\n(.*)\Z", re.DOTALL | re.MULTILINE)
_URL: Final = re.compile(r"https?://[^\s<>\"'`\[\]{}|\\^]+")
_CITATION: Final = re.compile(r"^[ \t]*(?:[-*][ \t]+)?\[(\d{1,4})\]:?[ \t]+(\S.*)$", re.MULTILINE)
_TRAILING: Final = ".,;:!?*_"

_SIGNS: Final = (
    ("python", re.compile(r"^\s*(?:def |class |import |from \w+ import |async def )", re.MULTILINE)),
    ("go", re.compile(r"^\s*(?:package \w+|func (?:\(|\w+\())", re.MULTILINE)),
    ("rust", re.compile(r"^\s*(?:(?:pub )?fn \w+|use \w+::|impl )", re.MULTILINE)),
    ("sql", re.compile(r"^\s*(?:SELECT|INSERT INTO|CREATE TABLE|UPDATE \w+ SET)\b", re.MULTILINE | re.IGNORECASE)),
    ("javascript", re.compile(r"^\s*(?:const|let|function|export|import) ", re.MULTILINE)),
    ("shell", re.compile(r"^#!.*sh\b")),
)

MOST_RATING: Final = 10.0
_AMOUNT: Final = r"(\d{1,3}(?:\.\d{1,3})?)"
_LABEL: Final = r"(?:overall[ \t]+)?(?:rating|score|grade|note)\b[*_`]*[ \t]*(?:[:=]|is|of)?[*_`]*[ \t]*[*_`]*"
_OF: Final = re.compile(rf"{_AMOUNT}[ \t]*(?:/|out[ \t]+of)[ \t]*{_AMOUNT}(?![\d/])", re.IGNORECASE)
_LABELLED_OF: Final = re.compile(_LABEL + _OF.pattern, re.IGNORECASE)
_STARS: Final = re.compile(r"([★⭐]+)([☆]*)")
_STARS_IN_WORDS: Final = re.compile(rf"{_AMOUNT}[ \t]*stars?\b", re.IGNORECASE)
_GRADE: Final = re.compile(_LABEL + r"([A-F])([+-]?)(?![A-Za-z0-9])", re.IGNORECASE)
_PERCENT: Final = re.compile(_LABEL + rf"{_AMOUNT}[ \t]*%", re.IGNORECASE)
_GRADES: Final = {"A": 9.5, "B": 8.0, "C": 6.5, "D": 5.0, "E": 3.5, "F": 2.0}
_WORDS: Final = {"excellent": 9.5, "outstanding": 9.5, "very good": 8.5, "good": 7.5, "acceptable": 6.0, "fair": 5.5,
                 "mediocre": 5.0, "poor": 3.0, "unacceptable": 1.0}  # fmt: skip
_WORD: Final = re.compile(
    r"\b(very good|excellent|outstanding|good|acceptable|fair|mediocre|poor|unacceptable)\b", re.IGNORECASE
)
_LABELLED_WORD: Final = re.compile(_LABEL + _WORD.pattern, re.IGNORECASE)

_CONFIDENCE: Final = re.compile(
    r"\bconfidence\b[*_`]*[ \t]*(?:level|score)?[*_`]*[ \t]*(?:[:=]|is|of)?[*_`]*[ \t]*[*_`]*"
    rf"(?:{_AMOUNT}[ \t]*(%|/[ \t]*10\b)?|(very high|high|medium|moderate|very low|low))",
    re.IGNORECASE,
)
_CONFIDENCES: Final = {"very high": 0.95, "high": 0.85, "medium": 0.6, "moderate": 0.6, "low": 0.3, "very low": 0.1}


def code_of(text: str) -> Code:
    """The code of an answer: its fenced blocks of the first one's language, joined; without a fence the whole text.

    A fence that was never closed (the answer was cut off) reaches to the end.

    >>> code_of("Here:\\n```python\\nprint(1)\\n```\\nDone.")
    Code(code='print(1)\\n', language='python')
    """
    blocks = [(found[2].lower(), found[3]) for found in _FENCE.finditer(text)]
    if not blocks:
        open_block = _OPEN_FENCE.search(text)
        blocks = [(open_block[1].lower(), open_block[2])] if open_block else [("", text)]
    language = next((name for name, _ in blocks if name), "")
    code = "\n".join(body for name, body in blocks if name in (language, "") or not language)
    return Code(code, language or _guessed(code))


def _guessed(code: str) -> str:
    return next((name for name, sign in _SIGNS if sign.search(code)), "text")


def sources_of(text: str) -> list[str]:
    """The addresses in a text, each once, in their order, without the punctuation of the sentence around them.

    >>> sources_of("See (https://example.org/a_(b)), and https://example.org/c.")
    ['https://example.org/a_(b)', 'https://example.org/c']
    """
    found: dict[str, None] = {}
    for match in _URL.finditer(text):
        url = match[0].rstrip(_TRAILING)
        while url.endswith(")") and url.count(")") > url.count("("):
            url = url[:-1].rstrip(_TRAILING)
        found[url] = None
    return list(found)


def citations_of(text: str) -> list[Citation]:
    """Numbered references that stand at the start of a line; the first of a number counts.

    >>> citations_of("As in [1].\\n\\n[1] Lamport 1978")
    [Citation(number=1, text='Lamport 1978')]
    """
    found: dict[int, Citation] = {}
    for match in _CITATION.finditer(text):
        number = int(match[1])
        found.setdefault(number, Citation(number, match[2].strip()))
    return [found[number] for number in sorted(found)]


def word_count(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def rating_of(text: str) -> float | None:
    """The rating that a review gives, from 0 to 10; None when it gives none.

    What is labelled goes first: "Rating: 4/5", "Score: 80 %", "Grade: B+", "Rating: good". Then stars, then any
    "n out of m", then "n stars". A bare word such as "good" in the middle of prose is no rating.

    >>> rating_of("Fine on 3/4. Rating: 4/5"), rating_of("★★★☆☆"), rating_of("Grade: A-"), rating_of("It is good.")
    (8.0, 6.0, 9.0, None)
    """
    for pattern in (_LABELLED_OF, _PERCENT, _GRADE, _LABELLED_WORD):
        found = pattern.search(text)
        if found is None:
            continue
        if pattern is _LABELLED_OF:
            rating = _scaled(found[1], found[2])
        elif pattern is _PERCENT:
            rating = _scaled(found[1], "100")
        elif pattern is _GRADE:
            rating = min(MOST_RATING, _GRADES[found[1].upper()] + {"+": 0.5, "-": -0.5, "": 0.0}[found[2]])
        else:
            rating = _WORDS[found[1].lower()]
        if rating is not None:
            return rating
    stars = _STARS.search(text)
    if stars is not None:
        return _scaled(str(len(stars[1])), str(max(5, len(stars[1]) + len(stars[2]))))
    for found in _OF.finditer(text):
        rating = _scaled(found[1], found[2])
        if rating is not None and float(found[2]) in (5, 10, 20, 100):
            return rating
    in_words = _STARS_IN_WORDS.search(text)
    return _scaled(in_words[1], "5") if in_words is not None else None


def _scaled(part: str, whole: str) -> float | None:
    if float(whole) <= 0 or float(part) > float(whole):
        return None
    return round(MOST_RATING * float(part) / float(whole), 2)


def confidence_of(text: str) -> float | None:
    """What an answer says of its own certainty, from 0 to 1: "Confidence: 85%", "confidence is high". None: nothing.

    >>> confidence_of("Confidence: 85%"), confidence_of("**Confidence:** high"), confidence_of("I am sure.")
    (0.85, 0.85, None)
    """
    found = _CONFIDENCE.search(text)
    if found is None:
        return None
    if found[3] is not None:
        return _CONFIDENCES[found[3].lower()]
    value = float(found[1])
    if found[2] == "%" or (found[2] is None and 1 < value <= 100):
        value /= 100
    elif found[2] is not None:
        value /= 10
    return round(value, 4) if 0 <= value <= 1 else None
