"""Language models: one small contract, the real clients, retries, and recorded answers."""

from hivewire.llm.anthropic_client import Anthropic as Anthropic
from hivewire.llm.contract import LLM as LLM
from hivewire.llm.contract import CompletionRequest as CompletionRequest
from hivewire.llm.contract import CompletionResponse as CompletionResponse
from hivewire.llm.contract import FinishReason as FinishReason
from hivewire.llm.contract import Piece as Piece
from hivewire.llm.contract import Tool as Tool
from hivewire.llm.contract import ToolCall as ToolCall
from hivewire.llm.contract import Turn as Turn
from hivewire.llm.contract import Usage as Usage
from hivewire.llm.models import connect_model as connect_model
from hivewire.llm.models import model_from as model_from
from hivewire.llm.openai_client import OpenAI as OpenAI
from hivewire.llm.recorded import Recorded as Recorded
from hivewire.llm.resilient import Resilient as Resilient
