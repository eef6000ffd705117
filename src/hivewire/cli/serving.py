"""Moved to hivewire.coordination.serving."""

from hivewire.coordination.serving import run_until_signal as run_until_signal
