"""Tasks, their progress and who owns them: in memory, SQLite or PostgreSQL."""

from hivewire.coordination.ledger.contract import Ledger
from hivewire.coordination.ledger.model import (
    Guard,
    HistoryEntry,
    Lease,
    LedgerHealth,
    LedgerStats,
    ProgressEntry,
    Task,
    TaskChange,
    TaskFilter,
)
from hivewire.coordination.ledger.opening import open_ledger
from hivewire.rules.task_states import TaskStatus

__all__ = [
    "Guard",
    "HistoryEntry",
    "Lease",
    "Ledger",
    "LedgerHealth",
    "LedgerStats",
    "ProgressEntry",
    "Task",
    "TaskChange",
    "TaskFilter",
    "TaskStatus",
    "open_ledger",
]
