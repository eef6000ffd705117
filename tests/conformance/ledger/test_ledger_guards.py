"""Who may write: versions, leases and their tokens."""

from hivewire.testing.ledgers.guards import *  # noqa: F403
