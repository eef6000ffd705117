"""Statistics, purging, retention, health, closing."""

from hivewire.testing.ledgers.keeping import *  # noqa: F403
