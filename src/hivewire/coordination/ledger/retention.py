"""Deletes by itself what was finished long ago."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from hivewire.errors import BackendError, LedgerError
from hivewire.ids import new_id

if TYPE_CHECKING:
    from hivewire.coordination.ledger.stored import Retention, StoredLedger

log = logging.getLogger(__name__)


async def keep_house(ledger: StoredLedger, retention: Retention) -> None:
    """For ever. Of all processes on one ledger, one does it at a time; what fails is tried again next time."""
    owner = new_id()
    while True:
        try:
            if await ledger.acquire("retention", owner, retention.every_s) is not None:
                tasks = await ledger.purge_completed(retention.older_than_s)
                steps = await ledger.purge_progress(retention.older_than_s)
                if tasks or steps:
                    log.info("ledger purged", extra={"tasks": tasks, "steps": steps})
        except (BackendError, LedgerError) as error:
            log.warning("ledger not purged", extra={"error": str(error)})
        await asyncio.sleep(retention.every_s)
