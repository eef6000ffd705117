"""Messages and shared work for teams of software agents, with one promise on every backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivewire.backend import Depth as Depth
    from hivewire.coordination.context import Context as Context
    from hivewire.coordination.coordinator import Coordinator as Coordinator
    from hivewire.coordination.effects import LedgerEffects as LedgerEffects
    from hivewire.coordination.ledger import Guard as Guard
    from hivewire.coordination.ledger import Lease as Lease
    from hivewire.coordination.ledger import Ledger as Ledger
    from hivewire.coordination.ledger import ProgressEntry as ProgressEntry
    from hivewire.coordination.ledger import Task as Task
    from hivewire.coordination.ledger import TaskChange as TaskChange
    from hivewire.coordination.ledger import TaskFilter as TaskFilter
    from hivewire.coordination.ledger import TaskStatus as TaskStatus
    from hivewire.coordination.ledger import open_ledger as open_ledger
    from hivewire.coordination.outbox.boxes import Inbox as Inbox
    from hivewire.coordination.outbox.boxes import Outbox as Outbox
    from hivewire.coordination.outbox.relay import Relay as Relay
    from hivewire.coordination.tasks import TaskRequest as TaskRequest
    from hivewire.coordination.tasks import TaskResult as TaskResult
    from hivewire.coordination.worker import Worker as Worker
    from hivewire.coordination.worker import run as run
    from hivewire.delivery import Delivery as Delivery
    from hivewire.errors import AlreadySettled as AlreadySettled
    from hivewire.errors import BackendError as BackendError
    from hivewire.errors import Closed as Closed
    from hivewire.errors import ConnectionLost as ConnectionLost
    from hivewire.errors import CoordinationError as CoordinationError
    from hivewire.errors import Deadline as Deadline
    from hivewire.errors import DeliveryError as DeliveryError
    from hivewire.errors import Expired as Expired
    from hivewire.errors import HivewireError as HivewireError
    from hivewire.errors import InvalidPlan as InvalidPlan
    from hivewire.errors import InvalidTransition as InvalidTransition
    from hivewire.errors import LeaseLost as LeaseLost
    from hivewire.errors import LedgerError as LedgerError
    from hivewire.errors import MessageError as MessageError
    from hivewire.errors import MigrationNeeded as MigrationNeeded
    from hivewire.errors import NoCapableWorker as NoCapableWorker
    from hivewire.errors import NoHandler as NoHandler
    from hivewire.errors import PlanRefused as PlanRefused
    from hivewire.errors import QueueFull as QueueFull
    from hivewire.errors import QueueMissing as QueueMissing
    from hivewire.errors import Reject as Reject
    from hivewire.errors import RetryAfter as RetryAfter
    from hivewire.errors import SettingsError as SettingsError
    from hivewire.errors import TaskExists as TaskExists
    from hivewire.errors import TaskMissing as TaskMissing
    from hivewire.errors import TimedOut as TimedOut
    from hivewire.errors import TooLarge as TooLarge
    from hivewire.errors import Undecodable as Undecodable
    from hivewire.errors import Unsupported as Unsupported
    from hivewire.errors import VersionConflict as VersionConflict
    from hivewire.factory import ProtocolFactory as ProtocolFactory
    from hivewire.factory import connect as connect
    from hivewire.message import UNORDERED as UNORDERED
    from hivewire.message import Message as Message
    from hivewire.message import MessageType as MessageType
    from hivewire.message import Priority as Priority
    from hivewire.protocol import DeadLetter as DeadLetter
    from hivewire.protocol import Delayed as Delayed
    from hivewire.protocol import Explanation as Explanation
    from hivewire.protocol import Health as Health
    from hivewire.protocol import Protocol as Protocol
    from hivewire.protocol import ProtocolMetrics as ProtocolMetrics
    from hivewire.protocol import Receipt as Receipt
    from hivewire.protocol import Schedule as Schedule
    from hivewire.protocol import Subscription as Subscription
    from hivewire.rules.plan_limits import RunLimits as RunLimits
    from hivewire.rules.retry import Retry as Retry
    from hivewire.settings import Settings as Settings
    from hivewire.version import __version__ as __version__

# Loaded when they are first asked for: `import hivewire` is part of every command's start.
_HOMES = {
    "backend": ["Depth"],
    "coordination.coordinator": ["Coordinator"],
    "coordination.tasks": ["TaskRequest", "TaskResult"],
    "coordination.effects": ["LedgerEffects"],
    "coordination.ledger": [
        "Guard",
        "Lease",
        "Ledger",
        "ProgressEntry",
        "Task",
        "TaskChange",
        "TaskFilter",
        "TaskStatus",
        "open_ledger",
    ],
    "coordination.outbox.boxes": ["Inbox", "Outbox"],
    "coordination.outbox.relay": ["Relay"],
    "coordination.context": ["Context"],
    "coordination.worker": ["Worker", "run"],
    "delivery": ["Delivery"],
    "errors": [
        "AlreadySettled",
        "BackendError",
        "Closed",
        "ConnectionLost",
        "CoordinationError",
        "Deadline",
        "DeliveryError",
        "Expired",
        "HivewireError",
        "InvalidPlan",
        "InvalidTransition",
        "LeaseLost",
        "LedgerError",
        "MessageError",
        "MigrationNeeded",
        "NoCapableWorker",
        "NoHandler",
        "PlanRefused",
        "QueueFull",
        "QueueMissing",
        "Reject",
        "RetryAfter",
        "SettingsError",
        "TaskExists",
        "TaskMissing",
        "TimedOut",
        "TooLarge",
        "Undecodable",
        "Unsupported",
        "VersionConflict",
    ],
    "factory": ["ProtocolFactory", "connect"],
    "message": ["UNORDERED", "Message", "MessageType", "Priority"],
    "protocol": [
        "DeadLetter",
        "Delayed",
        "Explanation",
        "Health",
        "Protocol",
        "ProtocolMetrics",
        "Receipt",
        "Schedule",
        "Subscription",
    ],
    "rules.plan_limits": ["RunLimits"],
    "rules.retry": ["Retry"],
    "settings": ["Settings"],
    "version": ["__version__"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605  # the names above, in one place


if not TYPE_CHECKING:  # else a checker would take every misspelt name for Any

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'hivewire' has no attribute {name!r}")
        value = getattr(import_module(f"hivewire.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
