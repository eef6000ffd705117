"""Whether a message costs more than it did: CPU over the raw loop, as a slow or busy machine leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from hivewire.bench.report import Report, Verdict
from hivewire.errors import SettingsError

UNCOMPARED: Final = ("W4",)
"""There most of the CPU is waiting for the clock."""


class Baseline(msgspec.Struct, kw_only=True):
    """What was measured once. `ratios`: CPU a message over the raw reference, by workload and peer."""

    started_at: str
    machine: str
    rounds: int
    ratios: dict[str, float]


def save(report: Report, path: Path) -> None:
    """Ratios of pairs that this run did not measure stay as they are in the file."""
    before = load(path).ratios if path.exists() else {}
    made = Baseline(
        started_at=report.started_at,
        machine=str(report.machine),
        rounds=report.rounds,
        ratios=dict(sorted({**before, **_rounded(report.ratios)}.items())),
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: round(ratio, 3) for name, ratio in found.items() if not name.startswith(UNCOMPARED)}


def load(path: Path) -> Baseline:
    """Raises `SettingsError` where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except OSError as error:
        raise SettingsError(f"cannot read the baseline {path}: {error.strerror}; `--save {path}` makes one") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is not a baseline that `hivewire bench --save` has made: {error}") from error


def compare(now: Mapping[str, float], baseline: Baseline, tolerance: float) -> list[Verdict]:
    """A pair is worse when its ratio has grown by more than `tolerance` (0.2: a fifth). Those that only one side
    knows are not compared."""
    return [
        Verdict(
            f"{name}: CPU over raw <= {1 + tolerance:g} x the baseline's",
            f"{ratio:.2f} x raw, baseline {known:.2f}, so {ratio / known - 1:+.0%}",
            ratio <= known * (1 + tolerance),
        )
        for name, ratio in _rounded(now).items()
        if (known := baseline.ratios.get(name)) is not None
    ]


def worse(verdicts: list[Verdict]) -> list[str]:
    """The pairs that are not within the tolerance."""
    return [verdict.name.partition(":")[0] for verdict in verdicts if not verdict.is_met]
