"""What the providers' HTTP answers mean, the same for each of them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from hivewire.errors import ModelError, ModelRefused, ModelUnavailable

_RETRYABLE = frozenset({408, 409, 425, 429, 529})


def failure(doing: str, status: int, text: str, headers: Mapping[str, str], now: float | None = None) -> ModelError:
    """The error for an HTTP status that is not 200. 429 and 5xx pass; other 4xx are the request's fault."""
    if status in _RETRYABLE or status >= 500:
        return ModelUnavailable(
            f"{doing}: HTTP {status}: {text}",
            retry_after_s=retry_after_s(headers, time.time() if now is None else now),
            is_rate_limit=status == 429,
        )
    hint = {
        401: "; check the API key",
        403: "; this key may not do it",
        404: "; check the model's name and the base URL",
    }.get(status, "")
    return ModelRefused(f"{doing}: HTTP {status}: {text}{hint}")


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the provider asks to wait: `retry-after-ms`, else `Retry-After` as seconds or a date (RFC 9110,
    section 10.2.3). None when it does not say, or says nonsense."""
    from email.utils import parsedate_to_datetime  # slow to import, and seldom needed

    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - now
            except ValueError:
                continue
        if 0 <= seconds < float("inf"):
            return seconds
        if seconds < 0:
            return 0.0
    return None
