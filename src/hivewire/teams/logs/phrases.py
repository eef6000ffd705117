"""What the services of the sample say, and how each writes its times."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec


class Phrase(msgspec.Struct, frozen=True):
    """One kind of line: `text` takes a value for each of `fields`. A heavier one is said more often."""

    weight: int
    level: str
    text: str
    fields: tuple[str, ...] = ()
    utf8: bool = True


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A log file: its share of all lines and the shape of a line."""

    name: str
    share: float
    line: Callable[[float, str, str], str]
    phrases: list[Phrase]
    traces: str = ""
    rotates: bool = False
    gaps: bool = False


def values(chance: random.Random) -> dict[str, Callable[[], object]]:
    """Sources of made-up values by name."""
    rnd, bits = chance.random, chance.getrandbits

    def uuid() -> str:
        text = f"{bits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def address() -> str:
        return f"10.{int(rnd() * 4)}.{int(rnd() * 256)}.{int(rnd() * 256)}"

    def one_of(*words: str) -> Callable[[], str]:
        return lambda: words[int(rnd() * len(words))]

    return {
        "ms": lambda: int(rnd() * rnd() * 2000),
        "n": lambda: int(rnd() * 100_000),
        "small": lambda: int(rnd() * 12),
        "money": lambda: f"{rnd() * 500:.2f}",
        "uuid": uuid,
        "ip": address,
        "port": lambda: 1024 + int(rnd() * 60_000),
        "hex": lambda: f"{bits(40):010x}",
        "ptr": lambda: f"0x{bits(47):x}",
        "status": one_of("200", "200", "200", "200", "201", "204", "301", "304", "404", "500"),
        "method": one_of("GET", "GET", "GET", "POST", "PUT"),
        "url": lambda: f"/api/{one_of('orders', 'items', 'users')()}/{int(rnd() * 90_000)}",
        "user": one_of("alice", "bob", "carol", "dave", "root", "deploy"),
        "mail": lambda: f"user{int(rnd() * 5000)}@example.com",
        "disk": lambda: f"/srv/data/{bits(12):03x}/blob-{bits(32):08x}.bin",
    }


@lru_cache(maxsize=4096)
def _minute(pattern: str, minute: int) -> str:
    return time.strftime(pattern, time.gmtime(60 * minute))


def _formatted(pattern: str, second: int) -> str:
    """By minute, since most lines share theirs with the line before."""
    return f"{_minute(pattern, second // 60)}:{second % 60:02d}"


def _iso(at: float, mark: str = "T") -> str:
    return _formatted(f"%Y-%m-%d{mark}%H:%M", int(at))


def _python(at: float, level: str, text: str) -> str:
    return f"{_iso(at, ' ')},{int(at % 1 * 1000):03d} {level:<7} [orders.api] {text}"


def _json(at: float, level: str, text: str) -> str:
    return f'{{"ts":"{_iso(at)}.{int(at % 1 * 1000):03d}Z","level":"{level.lower()}","msg":"{text}","pid":4711}}'


def _java(at: float, level: str, text: str) -> str:
    return f"{_iso(at + 3600)}.{int(at % 1 * 1000):03d}+01:00 {level:<5} [worker-{int(at) % 8}] shop.Inventory - {text}"


def _syslog(at: float, _level: str, text: str) -> str:
    return f"Mar {_formatted('%d %H:%M', int(at))} edge-1 {text}"  # not %b: the sample speaks no other language


def _klog(at: float, level: str, text: str) -> str:
    when = _formatted("%m%d %H:%M", int(at))
    return f"{level[0]}{when}.{int(at % 1 * 1e6):06d}  311 store.go:{len(text)}] {text}"


def _logfmt(at: float, level: str, text: str) -> str:
    return f"{at:.3f} level={level.lower()} worker={int(at) % 5} {text}"


def _access(at: float, _level: str, text: str) -> str:
    address, rest = text.split(" ", 1)
    return f"{address} - - [{_formatted('%d/Mar/%Y:%H:%M', int(at))} +0000] {rest}"


def _proxy(at: float, level: str, text: str) -> str:
    return f"{_formatted('%Y/%m/%d %H:%M', int(at))} [{level.lower()}] 77#0: {text}"


TRACES: Final = {
    "python": (
        b"Traceback (most recent call last):",
        b'  File "/srv/orders/api.py", line 214, in place',
        b"    total = prices[item.sku] * item.count",
        b"KeyError: 'sku-90417'",
    ),
    "java": (
        b"java.lang.IllegalStateException: stock went below zero",
        b"\tat shop.inventory.Stock.take(Stock.java:88)",
        b"\tat shop.inventory.Service.reserve(Service.java:141)",
        b"\t... 23 more",
    ),
}

SERVICES: Final = (
    Service(
        name="gateway",
        share=0.30,
        line=_access,
        phrases=[Phrase(1, "", '%s "%s %s HTTP/1.1" %s %d "-" "curl/8.7.1"', ("ip", "method", "url", "status", "n"))],
    ),
    Service(
        name="orders",
        share=0.20,
        line=_python,
        traces="python",
        rotates=True,
        phrases=[
            Phrase(40, "INFO", "order %s accepted for customer %d in %d ms", ("uuid", "n", "ms")),
            Phrase(20, "INFO", "cart %d now holds %d items", ("n", "small")),
            Phrase(30, "DEBUG", "cache hit for key item:%d", ("n",)),
            Phrase(6, "WARNING", "slow query: %d ms for select on orders", ("ms",)),
            Phrase(1, "ERROR", "order %s failed: no price", ("uuid",)),
        ],
    ),
    Service(
        name="payments",
        share=0.12,
        line=_json,
        phrases=[
            Phrase(60, "INFO", "charged %s EUR for order %s", ("money", "uuid")),
            Phrase(25, "INFO", "webhook delivered to https://shop.example.com/hooks/%d in %d ms", ("n", "ms")),
            Phrase(5, "WARN", "retry %d of 5 towards acquirer %s:%d", ("small", "ip", "port")),
            Phrase(1, "ERROR", "acquirer timed out after %d ms, order %s", ("ms", "uuid")),
        ],
    ),
    Service(
        name="inventory",
        share=0.12,
        line=_java,
        traces="java",
        phrases=[
            Phrase(50, "INFO", "reserved %d of item %d", ("small", "n")),
            Phrase(25, "DEBUG", "lock %s taken in %d us", ("ptr", "ms")),
            Phrase(4, "WARN", "stock of item %d is low: %d left", ("n", "small")),
            Phrase(1, "ERROR", "reservation %s rolled back", ("uuid",)),
        ],
    ),
    Service(
        name="auth",
        share=0.08,
        line=_syslog,
        phrases=[
            Phrase(20, "", "sshd[%d]: Accepted publickey for deploy from %s port %d ssh2", ("n", "ip", "port")),
            Phrase(12, "", "sshd[%d]: Failed password for user %s from %s port %d", ("n", "user", "ip", "port")),
            Phrase(15, "", "cron[%d]: (root) CMD (/usr/bin/backup --quiet)", ("n",)),
            Phrase(8, "", "mail[%d]: queued for <%s>", ("n", "mail")),
        ],
    ),
    Service(
        name="storage",
        share=0.10,
        line=_klog,
        phrases=[
            Phrase(50, "INFO", "compacted %s: %d bytes, digest %s", ("disk", "n", "hex")),
            Phrase(6, "WARNING", "volume %d is %d%% full", ("small", "small")),
            Phrase(1, "ERROR", "read %s: input/output error at block %s", ("disk", "ptr")),
        ],
    ),
    Service(
        name="jobs",
        share=0.05,
        line=_logfmt,
        phrases=[
            Phrase(30, "INFO", 'msg="job done" job=%s took=%dms', ("uuid", "ms")),
            Phrase(4, "WARN", 'msg="job late" job=%s by=%ds', ("uuid", "small")),
        ],
    ),
    Service(
        name="legacy",
        share=0.05,
        line=_proxy,
        gaps=True,
        phrases=[
            Phrase(20, "NOTICE", "session %s opened from %s", ("hex", "ip")),
            Phrase(4, "NOTICE", "Umlaut aus der Altdatenbank: M\u00fcller, Stra\u00dfe %d", ("small",), utf8=False),
            Phrase(2, "WARN", "*%d upstream %s answers slowly", ("n", "ip")),
            Phrase(1, "CRIT", '*%d open() "/var/www/%d" failed (2: No such file or directory)', ("n", "n")),
        ],
    ),
)
