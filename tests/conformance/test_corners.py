"""Corners: what the promises say together, where two of them meet."""

from hivewire.testing.conformance.corners import *  # noqa: F403
