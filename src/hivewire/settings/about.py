"""What is said of a setting beside its type, and text that is kept secret."""

from __future__ import annotations

import msgspec


class Secret:
    """Text that is never shown by accident: `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret('***')" if self._text else "Secret('')"

    def __str__(self) -> str:
        return "***" if self._text else ""


class About(msgspec.Struct, frozen=True):
    """What is known of a setting beside its type. `why` says why the default is not the reference's."""

    text: str
    env: str | None = None
    least: float | None = None
    most: float | None = None
    reference: str | None = None
    """The default in the reference, where ours differs; `why` is the reason."""
    why: str = ""
    sets: str | None = None
    """The general setting that gets this value when this protocol is the one in use."""
