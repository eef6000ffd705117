"""What the trail keeps, and finding a message among others."""

from hivewire.testing.conformance.trail import *  # noqa: F403
