"""Effects that a ledger remembers."""

from hivewire.testing.ledgers.effects import *  # noqa: F403
