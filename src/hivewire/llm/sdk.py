"""The official clients `openai` and `anthropic` come from one generator: their errors and streams are alike."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from hivewire.errors import BadAnswer, ModelUnavailable
from hivewire.llm.failures import failure

_Form = TypeVar("_Form")


class Asking:
    """Calls of one client, each within its time, its errors as ours.

    Some models take no `temperature`; they say so with HTTP 400. It is a wish, so they are asked again without it, and
    remembered.
    """

    def __init__(self, sdk: Any) -> None:
        self._sdk = sdk
        self._without_temperature: set[str] = set()

    async def create(
        self, create: Callable[..., Awaitable[Any]], body: dict[str, Any], temperature: float | None, limit_s: float
    ) -> Any:
        model = body["model"]
        wish = temperature is not None and model not in self._without_temperature
        extra = {"extra_body": {"temperature": temperature}} if wish else {}
        doing = f"ask {model}"
        with translated(self._sdk, doing, limit_s):
            async with asyncio.timeout(limit_s):
                try:
                    return await create(**body, **extra, timeout=limit_s)
                except self._sdk.BadRequestError as error:
                    if not wish or "temperature" not in error.message:
                        raise
                self._without_temperature.add(model)
                return await create(**body, timeout=limit_s)


async def each(sdk: Any, chunks: Any, doing: str, limit_s: float) -> AsyncGenerator[Any]:
    """The chunks of a stream, each within `limit_s`; the connection is given back however this ends."""
    async with chunks:
        following = aiter(chunks)
        while True:
            with translated(sdk, doing, limit_s):
                async with asyncio.timeout(limit_s):
                    try:
                        chunk = await anext(following)
                    except StopAsyncIteration:
                        return
            yield chunk


def read(found: Any, form: type[_Form], doing: str) -> _Form:
    """What the provider sent, in a form of our own. The clients build their objects without looking at the values: a
    server that only resembles the provider's may send anything. Raises `BadAnswer`."""
    try:
        plain = found.model_dump(warnings=False) if hasattr(found, "model_dump") else found
        return msgspec.convert(plain, form)
    except (msgspec.ValidationError, AttributeError, TypeError, ValueError) as error:
        raise BadAnswer(f"{doing}: the answer is not of the API's form ({error}): {str(found)[:200]!r}") from error


@contextmanager
def translated(sdk: Any, doing: str, limit_s: float) -> Generator[None]:
    """The client's errors as ours."""
    try:
        yield
    except sdk.APIStatusError as error:
        raise failure(doing, error.status_code, error.message, error.response.headers) from error
    except (sdk.APITimeoutError, TimeoutError) as error:
        raise ModelUnavailable(f"{doing}: no answer within {limit_s:g} s", may_cost=_was_sent(error)) from error
    except sdk.APIConnectionError as error:
        where = error.request.url
        raise ModelUnavailable(
            f"{doing}: the connection to {where.host}:{where.port or where.scheme} failed: {error.__cause__ or error}",
            may_cost=_was_sent(error),
        ) from error
    except sdk.APIResponseValidationError as error:
        raise BadAnswer(f"{doing}: the answer is not of the API's form: {error.message}") from error
    except sdk.APIError as error:  # told inside a stream
        raise ModelUnavailable(f"{doing}: {error.message}", may_cost=True) from error
    except _transport_errors() as error:  # a stream that breaks off
        raise ModelUnavailable(
            f"{doing}: the connection broke: {str(error) or type(error).__name__}", may_cost=True
        ) from error
    except ValueError as error:  # a body that is not JSON
        raise BadAnswer(f"{doing}: the answer could not be read: {error}") from error


def _was_sent(error: BaseException) -> bool:
    """False: there was no connection that the request could have gone out by."""
    return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout", "PoolTimeout")


def _transport_errors() -> tuple[type[Exception], ...]:
    """Of the HTTP library that the client brought; it lets them through while a stream is read."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx2", "httpx") if name in sys.modules)
