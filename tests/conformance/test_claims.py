"""Claim check."""

from hivewire.testing.conformance.claims import *  # noqa: F403
