"""The guide lists the settings that there are."""

from __future__ import annotations

from pathlib import Path

from hivewire.settings.schema import every_setting
from hivewire.settings.table import with_tables

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "settings.md"


def test_the_tables_are_up_to_date() -> None:
    """If this fails: python -m hivewire.settings.table docs/guides/settings.md"""
    text = GUIDE.read_text("utf-8")
    assert with_tables(text) == text


def test_every_setting_stands_in_a_table() -> None:
    text = GUIDE.read_text("utf-8")
    for setting in every_setting():
        assert f"| `{setting.name}` | `{setting.env}` |" in text
