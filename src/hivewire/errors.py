"""Every exception that Hivewire raises on purpose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import dropwhile
from typing import ClassVar, Final


class HivewireError(Exception):
    """The root of all. Its text says what was being done, to what, and what to do next."""

    code: ClassVar[str] = "hivewire"
    retryable: ClassVar[bool] = False


class SettingsError(HivewireError):
    """A setting is unknown or has a bad value; the text names it, its source and what is accepted."""

    code = "settings"


class Closed(HivewireError):
    """The protocol was closed; nothing was done."""

    code = "closed"


class MessageError(HivewireError):
    """A message that cannot be sent or read as it is."""

    code = "message"


class TooLarge(MessageError):
    """The content is larger than `max_message_size_bytes`; nothing was stored."""

    code = "too_large"


class Undecodable(MessageError):
    """Bytes that are not a message, or a message that cannot be written as JSON."""

    code = "undecodable"


class Expired(MessageError):
    """The time to live of the message ran out before it was handled."""

    code = "expired"


class BackendError(HivewireError):
    """The store refused or could not be reached."""

    code = "backend"


class ConnectionLost(BackendError):
    """The store went away. What was under way has an unknown outcome: repeat it with the same id."""

    code = "connection_lost"
    retryable = True


class TimedOut(BackendError):
    """The time allowed for the operation ran out."""

    code = "timed_out"
    retryable = True


class QueueFull(BackendError):
    """The queue was full for as long as the sender was ready to wait; nothing was stored."""

    code = "queue_full"
    retryable = True


class QueueMissing(BackendError):
    """The queue does not exist and may not be made."""

    code = "queue_missing"


class Unsupported(BackendError):
    """The store cannot do this."""

    code = "unsupported"


class DeliveryError(HivewireError):
    """A delivery cannot be settled."""

    code = "delivery"


class LeaseLost(DeliveryError):
    """The lease ended and the message may be with somebody else; this settlement had no effect."""

    code = "lease_lost"


class AlreadySettled(DeliveryError):
    """The delivery was settled before; only the first settlement takes effect."""

    code = "already_settled"


class NoHandler(DeliveryError):
    """This process has no handler for the message's type; a failed attempt."""

    code = "no_handler"


class CoordinationError(HivewireError):
    """A run of a plan cannot go on."""

    code = "coordination"


class InvalidPlan(CoordinationError):
    """The plan breaks a rule; the text lists every error, and `errors` has each of them."""

    code = "invalid_plan"

    def __init__(self, text: str, errors: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.errors: tuple[str, ...] = tuple(errors) or (text,)


class PlanRefused(InvalidPlan):
    """The model was asked twice, and neither plan can be carried out. `answer` is the second one, as it came."""

    code = "plan_refused"

    def __init__(self, text: str, errors: Sequence[str], answer: str) -> None:
        super().__init__(text, errors)
        self.answer = answer


class NoCapableWorker(CoordinationError):
    """No worker of the team has the capability that a subtask asks for."""

    code = "no_capable_worker"


class Deadline(CoordinationError):
    """The time allowed for the run ran out."""

    code = "deadline"


class ModelError(HivewireError):
    """A language model gave no usable answer."""

    code = "model"


class ModelUnavailable(ModelError):
    """Not now: the provider is overloaded, limits the rate, or could not be reached. `retry_after_s` is what it asks
    for, in seconds; None when it did not say. `is_rate_limit`: it works, but not for so many requests. `may_cost`: it
    had the request and may have worked on it, as when no answer came in time."""

    code = "model_unavailable"
    retryable = True

    def __init__(
        self, text: str, *, retry_after_s: float | None = None, is_rate_limit: bool = False, may_cost: bool = False
    ) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_rate_limit = is_rate_limit
        self.may_cost = may_cost


class ModelRefused(ModelError):
    """The provider will never answer this request: a bad key, an unknown model, a request that it does not take."""

    code = "model_refused"


class BadAnswer(ModelError):
    """The model answered, but not in the form that was asked for."""

    code = "bad_answer"


class LedgerError(HivewireError):
    """The ledger refused; nothing was changed."""

    code = "ledger"


class TaskMissing(LedgerError):
    """The ledger has no task of this id."""

    code = "task_missing"


class TaskExists(LedgerError):
    """The ledger has a task of this id already."""

    code = "task_exists"


class InvalidTransition(LedgerError):
    """A task in this status cannot get that one, or cannot be changed any more."""

    code = "invalid_transition"


class VersionConflict(LedgerError):
    """Somebody has changed the task since the version that was named; read it again."""

    code = "version_conflict"


class MigrationNeeded(LedgerError):
    """The tables are older or newer than this version's, or damaged; `hivewire ledger status` shows how."""

    code = "migration_needed"


class BudgetExceeded(ModelError):
    """A call would pass a limit of a budget; it was not made. `scope` and `what` name the limit."""

    code = "budget_exceeded"

    def __init__(self, text: str, *, scope: str, what: str) -> None:
        super().__init__(text)
        self.scope = scope
        self.what = what


class RetryAfter(Exception):
    """Raised by a handler: try this message again after `delay_s` seconds. Counts as an attempt."""

    def __init__(self, delay_s: float, reason: str = "") -> None:
        super().__init__(reason or f"retry after {delay_s} s")
        self.delay_s = duration_s(delay_s, "delay_s")


class Reject(Exception):
    """Raised by a handler: never try this message again; keep it with the dead letters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = str(reason)


def told(error: BaseException) -> str:
    """An error in a few words, also where it cannot say itself what it is."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as failure:  # noqa: BLE001  # a `__str__` may raise anything
        return f"{type(error).__name__}, whose text cannot be had: {type(failure).__name__}"


_MOST_WORDS: Final = 500
_IN_A_GROUP: Final = re.compile(r"^ +(?:\| |\+ |\+-.*)")
"""What stands before a line of an error group's traceback, and the lines that it draws."""


def last_words(traceback: str) -> str:
    """What a traceback says was raised, in one line: its last line is only the end of a text of several lines, or the
    frame of an error group. Of any other text the last line.

    >>> last_words('Traceback (most recent call last):\\n  File "a.py", line 1\\n    f()\\nValueError: no\\nway')
    'ValueError: no way'
    """
    lines = [line for line in (_IN_A_GROUP.sub("", line) for line in traceback.splitlines()) if line.strip()]
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    said = dropwhile(lambda line: line[0].isspace(), lines[frames[-1] + 1 :] if frames else lines[-1:])
    words = " ".join(line.strip() for line in said) or "".join(lines[-1:]).strip()
    return words if len(words) <= _MOST_WORDS else words[: _MOST_WORDS - 1] + "…"


def duration_s(value: object, what: str) -> float:
    """A number of seconds, not negative and not endless; else `MessageError`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise MessageError(f"{what} is a number of seconds, 0 or more; got {value!r}")
