"""The texts that the planner sends to a model: files that a user can replace."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template
from typing import Final

from hivewire.errors import SettingsError

PLACES: Final = {
    "plan": ("name", "description", "input", "capabilities", "limits"),
    "repair": ("errors", "capabilities", "limits", "answer"),
    "replan": ("errors", "finished", "facts", "guesses"),
}
"""For each prompt, the places that are filled in. A file may leave out what it does not want to say."""
_BUNDLED: Final = Path(__file__).parent / "prompts"
_MOST_BYTES: Final = 262_144


@cache
def _bundled(name: str) -> Template:
    return Template((_BUNDLED / f"{name}.md").read_text("utf-8"))


class Prompts:
    """The prompts `plan`, `repair` and `replan`. A folder with `plan.md` and so on replaces those that it has.

    Raises `SettingsError` for a file that cannot be read, or that has a place nobody fills in.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        own = Path(folder) if folder is not None else None
        if own is not None and not own.is_dir():
            raise SettingsError(f"the prompts' folder {str(own)!r} is not there")
        self._templates = {name: self._template(name, own) for name in PLACES}

    def text(self, prompt: str, **values: str) -> str:
        """The prompt with its places filled in. What is filled in is not looked into for places."""
        return self._templates[prompt].substitute(values)

    def _template(self, name: str, own: Path | None) -> Template:
        path = own / f"{name}.md" if own is not None else None
        if path is None or not path.exists():
            return _bundled(name)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the prompt {str(path)!r} cannot be read: {error}") from None
        if len(text) > _MOST_BYTES:
            raise SettingsError(f"the prompt {str(path)!r} has more than {_MOST_BYTES:,} characters")
        template = Template(text)
        if not template.is_valid():
            raise SettingsError(f"the prompt {str(path)!r} has a $ that is no place; write $$ for a dollar sign")
        unknown = sorted(set(template.get_identifiers()) - set(PLACES[name]))
        if unknown:
            known = ", ".join(f"${place}" for place in PLACES[name])
            raise SettingsError(f"the prompt {str(path)!r} has ${unknown[0]}, which nobody fills in (known: {known})")
        return template
