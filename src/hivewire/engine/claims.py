"""Claim check: the body of a large message lies in a blob store, and the queue holds a reference to it.

Each stored record has a blob of its own, put before the record and deleted after its acknowledgement is stored; a
dead letter keeps it. What a crash leaves behind is found by `sweep`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from functools import partial
from typing import Final
from uuid import uuid4

import msgspec

from hivewire.backend import Append, Backend
from hivewire.blobs import BlobStore
from hivewire.blobs.opening import open_blobs
from hivewire.errors import BackendError, Closed, HivewireError, TimedOut, Undecodable, Unsupported
from hivewire.message import Message
from hivewire.record import Fetched, Record, life, message_of

log = logging.getLogger(__name__)

MARK: Final = b"\x00hivewire-claim\n"
"""No message begins like this: a reader that knows nothing of claims sees that it cannot read it."""
_RETRY_S = 0.1
_MOST_TRIES = 50
_ORPHAN_S = 86_400.0
"""What was put longer ago than this, and is referred to by nothing, has been left behind."""
_UNDER_WAY_S = 3_600.0
_PAGE = 500
_MOST_FIRST = 10_000


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """What the queue holds instead of the body."""

    name: str
    sha256: bytes
    size: int
    may_be_second: bool = False
    """An append whose outcome is unknown was repeated: there may be another record with this content."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Claim)


class ContentLost(Undecodable):
    """The content that a message refers to is not there, or is not what was stored."""


def claim_of(record: Record) -> Claim | None:
    body = record.body
    if not body.startswith(MARK):
        return None
    try:
        return _decoder.decode(body[len(MARK) :])
    except msgspec.DecodeError:
        return None


def blob_store(setting: str, backend: Backend) -> BlobStore | None:
    """What the setting `blobs` names."""
    if setting == "auto":
        return backend.blobs()
    return None if setting == "none" else open_blobs(setting)


class Claims:
    """The claim checks of one protocol object."""

    def __init__(self, store: BlobStore, over_bytes: int, start: Callable[..., object]) -> None:
        self._store = store
        self._over_bytes = over_bytes
        self._start = start
        self._done: list[str] = []
        self._deleting = False
        self.open: dict[int, tuple[Fetched, str]] = {}
        """Records whose content was read here, by identity, and not settled yet."""
        self._first: dict[Hashable, str] = {}
        """The content of each message that was read here, by its life; the latest ones."""

    # -- sending

    async def put_away(self, batch: Sequence[Append], timeout_s: float) -> Sequence[Append]:
        """The batch as it is stored: large bodies replaced by references, their content stored before."""
        sizes = [len(record.body) for entry in batch for record in entry.records]
        if max(sizes, default=0) <= self._over_bytes:
            return batch
        trouble: list[BackendError] = []
        stored: list[Record] = []
        try:
            async with asyncio.timeout(timeout_s):
                for record in (record for entry in batch for record in entry.records):
                    stored.append(await self._stored(record, trouble, timeout_s))  # noqa: PERF401  # known if it fails
            left = iter(stored)
            return [msgspec.structs.replace(each, records=[next(left) for _ in each.records]) for each in batch]
        except BaseException as error:
            self.forget(stored)
            if not isinstance(error, TimeoutError):
                raise
            why = f": {trouble[-1]}" if trouble else ""
            raise TimedOut(f"send to {batch[0].queue}: its content was not stored within {timeout_s} s{why}") from None

    async def _stored(self, record: Record, trouble: list[BackendError], timeout_s: float) -> Record:
        body = record.body
        if len(body) <= self._over_bytes:
            return record
        under_way_s = max(0.0, timeout_s - _UNDER_WAY_S)
        name = f"{int(time.time() + under_way_s):011d}-{uuid4().hex}"
        while True:
            try:
                await self._put(name, body)
                break
            except BackendError as error:
                if not error.retryable:
                    raise
                trouble[:] = [error]
                await asyncio.sleep(_RETRY_S)
        return _with(record, Claim(name, hashlib.sha256(body).digest(), len(body)))

    async def _put(self, name: str, body: bytes) -> None:
        """Who is cancelled meanwhile leaves nothing behind."""
        putting = asyncio.ensure_future(self._store.put(name, body))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            putting.add_done_callback(partial(self._put_for_nobody, name))
            raise

    def _put_for_nobody(self, name: str, putting: asyncio.Future[None]) -> None:
        if not putting.cancelled() and putting.exception() is None:
            self._delete([name])

    def repeated(self, batch: Sequence[Append]) -> list[Append]:
        """For another append, after one of which nobody knows whether it was stored."""
        return [
            msgspec.structs.replace(entry, records=[_second(record) for record in entry.records]) for entry in batch
        ]

    def forget(self, records: Iterable[Record]) -> None:
        """These were surely not stored."""
        self._delete([claim.name for record in records if (claim := claim_of(record)) is not None])

    def cancelled(self, records: Iterable[Record]) -> None:
        """They were taken out of the store. What another record may refer to is left to `sweep`."""
        claims = [claim for record in records if (claim := claim_of(record)) is not None]
        self._delete([claim.name for claim in claims if not claim.may_be_second])

    async def of_queue(self, backend: Backend, queue: str) -> set[str]:
        """The contents that its messages and dead letters refer to; none where the store cannot be looked through."""
        try:
            return await _referred(backend, queue)
        except Unsupported:
            return set()

    def dropped(self, names: Iterable[str]) -> None:
        """All that referred to them is gone."""
        self._delete(list(names))

    # -- reading

    async def message_of(self, record: Record) -> Message:
        """Raises `ContentLost`, or `BackendError` when the blob store is away."""
        claim = claim_of(record)
        return message_of(record) if claim is None else message_of(await self._whole(record, claim))

    async def body_of(self, record: Record) -> bytes:
        claim = claim_of(record)
        return record.body if claim is None else (await self._whole(record, claim)).body

    async def _whole(self, record: Record, claim: Claim) -> Record:
        body = await self._store.get(claim.name)
        if body is None:
            raise ContentLost(f"the content {claim.name} of {record.id} ({claim.size} bytes) is not there")
        if hashlib.sha256(body).digest() != claim.sha256:
            raise ContentLost(f"the content {claim.name} of {record.id} is not what was stored: its hash differs")
        return msgspec.structs.replace(record, body=body)

    async def opened(self, fetched: Fetched) -> Message:
        """For a handler: the content is kept until its acknowledgement is stored."""
        claim = claim_of(fetched.record)
        if claim is not None:
            self.open[id(fetched)] = (fetched, claim.name)
            self._first.setdefault(life(fetched.record), claim.name)
            if len(self._first) > _MOST_FIRST:
                del self._first[next(iter(self._first))]
        return await self.message_of(fetched.record)

    def note_duplicate(self, fetched: Fetched) -> None:
        """It is dropped, and a content of its own goes with it. Where the first one's is not known it may be the same:
        an append that was repeated, and a dead letter now. Then it is left to `sweep`."""
        claim = claim_of(fetched.record)
        if claim is not None and self._first.get(life(fetched.record), claim.name) != claim.name:
            self.open[id(fetched)] = (fetched, claim.name)

    # -- collecting

    def settled(self, done: Sequence[Fetched], refused: Set[int]) -> None:
        """The store has these acknowledgements."""
        names = []
        for fetched in done:
            found = self.open.pop(id(fetched), None)
            if found is not None and id(fetched) not in refused:
                names.append(found[1])
        self._delete(names)

    def kept(self, records: Iterable[Fetched]) -> None:
        """They are not acknowledged by this attempt: tried again, dead, given back, or lost."""
        for fetched in records:
            self.open.pop(id(fetched), None)

    def _delete(self, names: Sequence[str]) -> None:
        self._done.extend(names)
        if self._done and not self._deleting:
            self._deleting = True
            try:
                self._start(self._delete_all(), "delete contents")
            except Closed:  # `close` deletes them, or the next sweep
                self._deleting = False

    async def _delete_all(self, tries: int = _MOST_TRIES) -> None:
        try:
            while self._done:
                names = self._done[:]
                try:
                    await self._store.delete(names)
                except HivewireError as error:
                    tries -= 1
                    if tries <= 0 or not error.retryable:
                        log.warning("contents are left for the next sweep", extra={"error": str(error)})
                        self._done.clear()
                        return
                    await asyncio.sleep(_RETRY_S)
                else:
                    del self._done[: len(names)]
        finally:
            self._deleting = False

    async def sweep(self, backend: Backend, older_than_s: float = _ORPHAN_S) -> int:
        """Delete contents that nothing refers to: put long ago (never while their messages may wait for room in a full
        queue: their names tell, with `_UNDER_WAY_S` to spare), and found neither in a queue nor in a dead letter when
        all were looked through twice. In this order, because messages move this way: delayed, waiting, dead."""
        horizon = time.time() - max(older_than_s, _UNDER_WAY_S)
        orphans = {name for name in await self._store.names() if _put_at(name) < horizon}
        for _ in range(2):
            if orphans:
                try:
                    orphans -= await _referred(backend)
                except Unsupported:
                    return 0
        if orphans:
            await self._store.delete(sorted(orphans))
        return len(orphans)

    async def close(self) -> None:
        await self._delete_all(1)
        await self._store.close()


def _with(record: Record, claim: Claim) -> Record:
    return msgspec.structs.replace(record, body=MARK + _encoder.encode(claim))


def _second(record: Record) -> Record:
    claim = claim_of(record)
    if claim is None or claim.may_be_second:
        return record
    return _with(record, msgspec.structs.replace(claim, may_be_second=True))


def _put_at(name: str) -> float:
    digits = name.partition("-")[0]
    return float(digits) if digits.isdecimal() else float("inf")


async def _referred(backend: Backend, only: str | None = None) -> set[str]:
    found: set[str] = set()
    queues = [spec.name for spec in await backend.queues() if only in (None, spec.name)]
    for delayed_only in (True, False):
        for queue in queues:
            async for each in backend.browse(queue, delayed_only=delayed_only):
                if (claim := claim_of(each.record)) is not None:
                    found.add(claim.name)
    after: str | None = None
    while letters := await backend.dead(only, _PAGE, after):
        found.update(claim.name for each in letters if (claim := claim_of(each.record)) is not None)
        after = letters[-1].cursor
    return found
