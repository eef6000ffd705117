"""Log lines become templates: what varies from line to line is replaced by marks like `<n>` and `<ip>`.

Two steps, so that most lines cost no regular expression of their own. `fold` works on a whole block of
lines at C speed: digits become 0, runs of them shrink to one, tails of hexadecimal words disappear. Lines
that fold to the same bytes are one *shape*, and `template_of` is asked once a shape. The template is a
function of the line alone, so it cannot depend on how a file was split or in which order it was read.
"""

from __future__ import annotations

import re
from typing import Final

SEVERITIES: Final = ("fatal", "error", "warning", "info", "debug", "none")
"""From the gravest down; `none` is a line that names no level."""

LONGEST_SHAPE: Final = 1000  # bytes of a line that decide its template; the rest of a longer line is cut
_HEX_TAIL: Final = b"\x01"
_UUID_TAIL: Final = b"\x02"
_LONG_RUN: Final = b"\x03"  # five digits or more: next to a-f this is a hexadecimal word
_CONTROLS: Final = bytes(n for n in range(32) if n not in (9, 10)) + b"\x7f"
# digits to 0; control characters to blanks: none survives into a report, and the marks above stay ours
_FOLDED: Final = bytes.maketrans(b"123456789" + _CONTROLS, b"0" * 9 + b" " * len(_CONTROLS))

# each begins with a literal, which the regex engine finds at the speed of memchr
_UUID: Final = re.compile(rb"-[0a-fA-F]{4}-[0a-fA-F]{4}-[0a-fA-F]{4}-[0a-fA-F]{12}(?![0A-Za-z])")
_HEX: Final = re.compile(rb"0(?<!00)0*[a-fA-F][0a-fA-F]{2,}(?![0A-Za-z_])")


def fold(block: bytes) -> bytes:
    """The shapes of all lines of `block`, line by line.

    >>> fold(b"took 153 ms\\ntook 7 ms\\n")
    b'took 0 ms\\ntook 0 ms\\n'
    """
    text = block.translate(_FOLDED)
    text = _UUID.sub(_UUID_TAIL, text)
    text = _HEX.sub(b"0" + _HEX_TAIL, text)
    text = text.replace(b"00000", _LONG_RUN)
    while b"00" in text:
        text = text.replace(b"00", b"0")
    while b"\x03\x03" in text:
        text = text.replace(b"\x03\x03", _LONG_RUN)
    return text.replace(b"\x030", _LONG_RUN)


# A word of digits and a-f with both in it, three characters or more. The class comes first for speed.
_HEX_WORD: Final = re.compile(
    rb"[0a-fA-F\x03](?<![A-Za-z0_\x03].)"
    rb"(?:(?<=[0\x03])[a-fA-F](?:[0a-fA-F\x03]+\x01?|\x01|(?<=\x03.))"
    rb"|(?<=[a-fA-F])[a-fA-F]*(?:\x03|0(?:[a-fA-F\x01]|(?<=[a-fA-F]{2}.)))[0a-fA-F\x03]*\x01?)"
    rb"(?![A-Za-z_0\x01\x02\x03])"
)
_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK: Final = r"0:0(?::0)?(?:[.,]0)?"
_ZONE: Final = r"(?:\ ?(?:Z\b|UTC\b|GMT\b|[+-]0(?::0)?))?"
_HTTP: Final = r"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)"
_SPEAKING: Final = r"(?:msg|message|error|err|event|level|lvl|severity|logger|name|component)"

# The first alternative that fits wins. A group's name is the mark that replaces it.
_INNER: Final = rf"""
    (?P<url>\b[a-z][a-z0+.-]{{0,15}}://[^\s"'<>)\]}}]+)
  | (?P<email>(?<![\w.+-])[\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)+)
  | (?P<time>(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?\ )?
        (?: 0-0-0[T\ _]{_CLOCK}{_ZONE} | 0/0/0\ {_CLOCK} | 0/{_MONTH}/0:{_CLOCK}(?:\ [+-]0)?
          | {_MONTH}\ +0\ {_CLOCK}(?:\ 0\b)? | 0\ {_MONTH}\ 0\ {_CLOCK}{_ZONE} ))
  | (?P<level_time>\b[IWEFDC]0\ {_CLOCK})
  | (?P<uuid>(?<![A-Za-z0_])[0a-fA-F]*\x01?\x02)
  | (?P<version>(?<![\w.])(?:0:)?0(?:\.[A-Za-z0]+)+(?:[+~-][A-Za-z0.]*0[A-Za-z0.]*)+)
  | (?P<clock>\b{_CLOCK}(?![\w:\x01\x02]))
  | (?P<ip>(?<![\w.])0\.0\.0\.0(?![\w]) | (?<![\w:])(?:[0a-fA-F]{{0,9}}\x01?:){{2,7}}(?:[0a-fA-F]{{1,9}}\x01?)(?![\w:]))
  | (?P<date>0-0-0\b|\b0/0/0\b)
  | (?P<path>(?<![\w>\x01\x02.])(?:~|[A-Za-z]:)?(?:[/\\][\w.@%+=~\x01\x02-]+)+[/\\]?(?:\?[^\s"']*)?)
  | (?P<hex>0x[0a-fA-F\x01]+ | (?<![A-Za-z0_])[a-fA-F]{{8,}}(?![A-Za-z0_]) | 0\x01)
  | (?P<span>(?<![A-Za-z0])(?:0[hms]){{2,3}}(?![A-Za-z0]))
  | (?P<id>(?<![A-Za-z0])[A-Za-z]*0[A-Za-z]+0[A-Za-z0]*(?![A-Za-z0]))
  | (?P<n>(?<![\w.])-?0(?:[.,]0)*|0(?:[.,]0)*)
"""
_OUTER: Final = rf"""
    (?P<kept>"{_SPEAKING}"\s*:\s*"(?:[^"\\]|\\.)*" | \b{_SPEAKING}="(?:[^"\\]|\\.)*" | "{_HTTP}\ [^"]*")
  | (?P<key>"[\w.@-]+"(?=\s*:))
  | (?P<str>"(?:[^"\\]|\\.)*" | (?<![\w'])'[^']*'(?![\w']))
  |
"""
# Nothing begins within a word, or with a blank or a bracket: most places fail here, at once.
_SOMEWHERE: Final = r"""(?<![A-Za-z](?=[A-Za-z])) (?=[A-Za-z0_"'/\\~:@.+\x01\x02-]) (?: %s )"""
_WITHIN: Final = re.compile(_SOMEWHERE % _INNER, re.VERBOSE | re.ASCII)
_WHOLE: Final = re.compile(_SOMEWHERE % (_OUTER + _INNER), re.VERBOSE | re.ASCII)
_ANYTHING: Final = re.compile(r"""[0\x01\x02"'/\\@:~]|[a-fA-F]{8}""")
"""What every mask has in it somewhere: a line without is its own template."""
_OPENING: Final = re.compile(r'"\w+"\s*:\s*"|\w+="|"')
_BLANKS: Final = re.compile(r"\s+")
_MARKS: Final = {name: f"<{name}>" for name in _WHOLE.groupindex} | {"clock": "<time>", "span": "<duration>"}


def _masked(found: re.Match[str]) -> str:
    kind, text = str(found.lastgroup), found.group()
    if kind == "kept":  # what a person wrote: mask the values in it, keep the words
        start = _OPENING.match(text)
        cut = start.end() if start else 0
        return f'{text[:cut]}{_WITHIN.sub(_masked, text[cut:-1])}"'
    if kind == "key":
        return text
    if kind == "level_time":
        return text[0] + "<time>"
    return _MARKS[kind]


def refine(shape: bytes) -> bytes:
    """A coarser shape, for the price of one expression: hexadecimal words of any form become one mark.

    Shapes that refine to the same bytes have the same template.
    """
    return _HEX_WORD.sub(b"0" + _HEX_TAIL, shape[:LONGEST_SHAPE]).replace(_LONG_RUN, b"0")


def template_of(shape: bytes) -> str:
    """The template of a refined shape.

    >>> template_of(refine(fold(b"order 17 from 10.0.0.9 took 153 ms")))
    'order <n> from <ip> took <n> ms'
    """
    text = shape.decode("utf-8", "replace")
    if _ANYTHING.search(text):
        text = _WHOLE.sub(_masked, text).replace("\x01", "").replace("\x02", "")
    return _BLANKS.sub(" ", text).strip()


_LEVELS: Final = {
    "fatal": "FATAL CRITICAL CRIT PANIC EMERG EMERGENCY ALERT",
    "error": "ERROR ERR SEVERE FAILURE",
    "warning": "WARNING WARN",
    "info": "INFO NOTICE INFORMATION",
    "debug": "DEBUG TRACE FINE FINER FINEST VERBOSE",
}
_LETTERS: Final = {"I": "info", "W": "warning", "E": "error", "F": "fatal", "D": "debug", "C": "fatal"}
_SEVERITY_OF: Final = {word: name for name, words in _LEVELS.items() for word in words.split()} | _LETTERS
_WORDS: Final = "|".join(sorted((word for word in _SEVERITY_OF if len(word) > 1), key=len, reverse=True))
# Upper case stands alone; lower case counts only where a level is meant, never in running text
_LEVEL: Final = re.compile(
    rf"""^(?P<letter>[IWEFDC])<time>
      | (?<![\w-])(?P<loud>{_WORDS})(?![\w-])
      | (?:\[|\b(?:level|lvl|severity)"?\s*[=:]\s*"?)(?P<marked>(?i:{_WORDS}))(?![\w-])""",
    re.VERBOSE,
)


_LOUD: Final = re.compile("[A-Z]{3}")
_HINTS: Final = ("[", "level", "lvl", "severity")


def severity_of(template: str) -> str:
    """The level that a line names near its start, as one of `SEVERITIES`.

    >>> severity_of('<time> WARN disk is full'), severity_of("no error was found")
    ('warning', 'none')
    """
    head = template[:160]
    if not (_LOUD.search(head) or head[1:7] == "<time>" or any(hint in head for hint in _HINTS)):
        return "none"  # as `_LEVEL` would say, for less
    found = _LEVEL.search(head)
    if found is None:
        return "none"
    return _SEVERITY_OF[str(found.group(str(found.lastgroup))).upper()]
