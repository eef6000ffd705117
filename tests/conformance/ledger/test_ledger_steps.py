"""Progress: numbered steps of a task."""

from hivewire.testing.ledgers.steps import *  # noqa: F403
