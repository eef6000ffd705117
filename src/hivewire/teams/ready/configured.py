"""The ready agents with the model of the settings, for the command line.

hivewire run --plan plan.json --team hivewire.teams.ready.configured:TEAM --input notes.txt
"""

from __future__ import annotations

from typing import Final

from hivewire.coordination.budgeted import Spending
from hivewire.llm import model_from
from hivewire.settings import load
from hivewire.teams.ready.agents import team

_settings = load()
TEAM: Final = team(model_from(_settings), spending=Spending.of(_settings))
