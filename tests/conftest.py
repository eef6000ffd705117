"""For all tests."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.system.on_a_server")

# Time is not what a property is about: a loaded machine must not fail one.
settings.register_profile("hivewire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("hivewire"), max_examples=20)
settings.load_profile("hivewire")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Processes that share the tests must know them by the same names."""
    if changing := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"named by the address of an object, give ids: {', '.join(changing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the workers wrote."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        for said in sorted(folder.glob("*.stderr")):
            if said.stat().st_size:
                report.sections.append((said.stem, said.read_text(errors="replace")[-4000:]))
    return report
