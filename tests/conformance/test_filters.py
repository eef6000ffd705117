"""Subscriptions: what an agent takes, and that what it does not take is kept and never lost."""

from hivewire.testing.conformance.filters import *  # noqa: F403
