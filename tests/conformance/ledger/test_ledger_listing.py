"""Filters, order and pages, against a plain model of them."""

from hivewire.testing.ledgers.listing import *  # noqa: F403
