"""The tables of outbox and inbox, in the user's own database."""

from __future__ import annotations

from typing import Final, Literal

from hivewire.errors import SettingsError

Dialect = Literal["sqlite", "postgres"]

LANES: Final = 16
"""Messages of one recipient and key share a lane; a relay has a lane for itself while it sends."""
TABLES: Final = ("hivewire_outbox", "hivewire_outbox_lanes", "hivewire_inbox")
LOCK: Final = 0x6F757462

_TYPES: Final = {
    "sqlite": ("integer PRIMARY KEY AUTOINCREMENT", "blob", "real"),
    "postgres": ("bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "bytea", "double precision"),
}


def tables(dialect: Dialect) -> str:
    """The statements that make the tables, for the user's own migrations. Once more, they change nothing."""
    if dialect not in _TYPES:
        raise SettingsError(f"there are no outbox tables for {dialect!r}; accepted: {', '.join(_TYPES)}")
    number, blob, time = _TYPES[dialect]
    places = ", ".join(f"({lane}, '', 0)" for lane in range(LANES))
    return f"""\
CREATE TABLE IF NOT EXISTS hivewire_outbox (
    number {number},
    id text NOT NULL UNIQUE,
    lane integer NOT NULL,
    body {blob} NOT NULL,
    created_at {time} NOT NULL,
    settled_at {time},
    error text NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS hivewire_outbox_waiting ON hivewire_outbox (lane, number) WHERE settled_at IS NULL;
CREATE INDEX IF NOT EXISTS hivewire_outbox_settled ON hivewire_outbox (settled_at) WHERE settled_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS hivewire_outbox_lanes (
    lane integer PRIMARY KEY,
    owner text NOT NULL,
    until {time} NOT NULL
);
INSERT INTO hivewire_outbox_lanes (lane, owner, until) VALUES
    {places}
    ON CONFLICT (lane) DO NOTHING;
CREATE TABLE IF NOT EXISTS hivewire_inbox (
    consumer text NOT NULL,
    id text NOT NULL,
    result text,
    handled_at {time} NOT NULL,
    PRIMARY KEY (consumer, id)
);
CREATE INDEX IF NOT EXISTS hivewire_inbox_handled ON hivewire_inbox (handled_at);
"""
