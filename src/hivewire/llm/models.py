"""A name becomes a model: `openai:gpt-4.1`, `anthropic:claude-sonnet-4-5`, `recorded:answers.jsonl`."""

from __future__ import annotations

from hivewire.errors import SettingsError
from hivewire.llm.anthropic_client import Anthropic
from hivewire.llm.contract import LLM
from hivewire.llm.openai_client import OpenAI
from hivewire.llm.recorded import Recorded
from hivewire.llm.resilient import Resilient
from hivewire.rules.retry import Retry
from hivewire.settings import Settings

_ACCEPTED = "openai:NAME, anthropic:NAME or recorded:PATH"


def connect_model(
    model: str,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    timeout_s: float = 120.0,
    max_attempts: int = 4,
) -> LLM:
    """The model of that name, asked again while its provider is not available (`Resilient`).

    Any server that speaks OpenAI's API is `openai:NAME` with its `base_url`; a local one that asks for no key still
    needs a word as `api_key`. Raises `SettingsError` for a name of another form, a missing package or a missing key.
    """
    kind, colon, name = model.partition(":")
    if not colon or not name:
        raise SettingsError(f"llm.model is {_ACCEPTED}; got {model!r}")
    if kind == "recorded":
        return Recorded(name)
    makers: dict[str, type[OpenAI] | type[Anthropic]] = {"openai": OpenAI, "anthropic": Anthropic}
    if kind not in makers:
        raise SettingsError(f"llm.model is {_ACCEPTED}; got {model!r}")
    client = makers[kind](name, api_key=api_key, base_url=base_url, timeout_s=timeout_s)
    return Resilient(client, retry=Retry(max_attempts=max_attempts, first_s=1.0, most_s=30.0))


def model_from(settings: Settings) -> LLM:
    """The model that the settings `llm.*` name. Raises `SettingsError` when they name none."""
    llm = settings.llm
    if llm.model is None:
        raise SettingsError(f"no model is set: llm.model (HIVEWIRE_LLM_MODEL) is {_ACCEPTED}")
    return connect_model(
        llm.model,
        api_key=llm.api_key.reveal() or None,
        base_url=llm.base_url,
        timeout_s=llm.timeout_s,
        max_attempts=llm.max_attempts,
    )
