"""Ready agents that ask a language model, and the tools that they may use."""

from hivewire.teams.ready.agents import KINDS as KINDS
from hivewire.teams.ready.agents import agent as agent
from hivewire.teams.ready.agents import team as team
from hivewire.teams.ready.tools import Policy as Policy
from hivewire.teams.ready.tools import PolicyTool as PolicyTool
from hivewire.teams.ready.tools import Toolbox as Toolbox
