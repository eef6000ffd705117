"""Schedules, and delayed messages that are listed and cancelled."""

from hivewire.testing.conformance.schedules import *  # noqa: F403
