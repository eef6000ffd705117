"""For all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.system.on_a_server")

# Time is not what a property is about: a loaded machine must not fail one.
settings.register_profile("hivewire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("hivewire"), max_examples=20)
settings.load_profile("hivewire")
