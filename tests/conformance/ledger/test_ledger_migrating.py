"""The tables go up and down, and what is not right is refused."""

from hivewire.testing.ledgers.migrating import *  # noqa: F403
