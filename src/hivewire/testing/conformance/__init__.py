"""The conformance suite: the promises of Hivewire as tests, the same for every backend.

A backend passes with one fixture, and a test file that takes over the cases:

    # conftest.py
    import pytest
    pytest.register_assert_rewrite("hivewire.testing.conformance")

    @pytest.fixture
    async def fabric(tmp_path):
        async with Fabric("mystore://localhost/test", tmp_path) as fabric:
            yield fabric

    # test_order.py
    from hivewire.testing.conformance.order import *

Where each promise is tested:

    1 stored before send returns  stored          8 no silent drop       bounds
    2 at least once               at_least_once   9 idempotent send      idempotent_send
    3 takeover in seconds         takeover       10 broadcast            broadcast
    4 fencing                     fencing        11 request/reply        request_reply
    5 order per key               order          12 clean stop           clean_stop
    6 retry                       retry          13 reconnect            reconnect
    7 dead letters                dead_letters

and beside them `delivery`, `filters`, `competing`, `priority`, `schedules`, `claims` (large contents), `retention`,
`explain`, `trail`, `values`, `effects`, `cancels`, `corners`, `mistakes` and `bad_input`. A feature that the store
lacks turns its case into one of the documented lesser promise; none is skipped. Counts are sampled unless
HIVEWIRE_SOAK=1. The cases need pytest and pytest-asyncio with `asyncio_mode = auto`.
"""

from hivewire.testing.conformance.fabric import Fabric

__all__ = ["Fabric"]
