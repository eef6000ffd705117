"""Tasks are kept as they were given, and change as they may."""

from hivewire.testing.ledgers.tasks import *  # noqa: F403
