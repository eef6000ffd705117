"""Promise 1: a message is stored before `send` returns, as durably as `health` says."""

from hivewire.testing.conformance.stored import *  # noqa: F403
