"""Calls that are cancelled wherever they wait."""

from hivewire.testing.conformance.cancels import *  # noqa: F403
