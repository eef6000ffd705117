"""What runs have decided and not sent yet: commands in the order of their decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from hivewire.coordination.ledger.store import Many, Query, Script
from hivewire.errors import CoordinationError
from hivewire.rules.plan_state import KeptCommand, load_command


class Kept(msgspec.Struct, frozen=True):
    """A command in the outbox, and to whom it goes; nobody has been chosen yet when that is empty."""

    run: str
    command: KeptCommand
    recipient: str
    place: tuple[int, int]
    """Where it stands in the run's outbox: one that is decided later stands behind."""


def read(run: str, limit: int, after: tuple[int, int] = (-1, -1)) -> Script[list[Kept]]:
    """In the order it was decided; from behind a place, where somebody has seen what stands before it."""
    rows = yield Query(
        "SELECT body, recipient, seq, place FROM run_outbox WHERE run = $1 AND (seq, place) > ($2, $3) "
        "ORDER BY seq, place LIMIT $4",
        [run, *after, limit],
    )
    return [_kept(run, body, recipient, (seq, place)) for body, recipient, seq, place in rows]


def _kept(run: str, body: str, recipient: str, place: tuple[int, int]) -> Kept:
    command = load_command(body.encode())
    if not isinstance(command, KeptCommand):
        raise CoordinationError(f"the outbox of run {run} has a {type(command).__name__} in it")
    return Kept(run, command, recipient, place)


def route(run: str, chosen: Sequence[tuple[Kept, str]]) -> Script[dict[str, str]]:
    """Fix to whom commands go, before they are sent. One that is fixed already stays so. The recipients, by id."""
    rows = [(run, *kept.place, recipient) for kept, recipient in chosen]
    yield Many(
        "UPDATE run_outbox SET recipient = $4 WHERE run = $1 AND seq = $2 AND place = $3 AND recipient = ''", rows
    )
    places = [kept.place for kept, _ in chosen]
    fixed = yield Query(
        "SELECT id, recipient FROM run_outbox WHERE run = $1 AND (seq, place) >= ($2, $3) AND (seq, place) <= ($4, $5)",
        [run, *min(places), *max(places)],
    )
    return {each[0]: each[1] for each in fixed}


def sent(run: str, places: Iterable[tuple[int, int]]) -> Script[None]:
    """What stands there is stored by the protocol (or outdated): forget it."""
    yield Many("DELETE FROM run_outbox WHERE run = $1 AND seq = $2 AND place = $3", [(run, *place) for place in places])


def left_behind(older_than_s: float, after: str, limit: int) -> Script[list[str]]:
    """Runs whose commands have waited for so long: who decided them is dead, or slow. In order, behind that one."""
    rows = yield Query(
        "SELECT DISTINCT run FROM run_outbox WHERE created_at < hivewire_begun() - $1 AND run > $2 "
        "ORDER BY run LIMIT $3",
        [older_than_s, after, limit],
    )
    return [run for (run,) in rows]
