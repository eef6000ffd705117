"""What users do by mistake stops nobody else and loses nothing."""

from hivewire.testing.conformance.mistakes import *  # noqa: F403
