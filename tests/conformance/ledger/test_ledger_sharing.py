"""Several processes on one ledger, and a store that goes away."""

from hivewire.testing.ledgers.sharing import *  # noqa: F403
