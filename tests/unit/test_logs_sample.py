"""The sample is the same for the same seed, and what is mined from it is what was put in."""

from __future__ import annotations

from pathlib import Path

from hivewire.teams.logs.bursts import find_bursts
from hivewire.teams.logs.mining import Miner, PieceSummary
from hivewire.teams.logs.sample import Sample, write_sample
from hivewire.teams.logs.sources import find, read, split


def mined(folder: str) -> PieceSummary:
    whole = PieceSummary()
    for piece in split(find([folder])[0], wished=7).pieces:
        miner = Miner(piece.path, piece.modified_at)
        for offset, block in read(piece):
            miner.add(block, offset)
        whole.add(miner.summary)
    return whole


def written(tmp_path: Path, name: str, seed: int = 5) -> Sample:
    return write_sample(tmp_path / name, lines=30_000, seed=seed)


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    one, two, other = written(tmp_path, "one"), written(tmp_path, "two"), written(tmp_path, "other", seed=6)
    assert one.lines == two.lines
    names = sorted(path.name for path in Path(one.folder).iterdir())
    same = [(Path(one.folder) / name).read_bytes() == (Path(two.folder) / name).read_bytes() for name in names]
    assert all(same)
    assert (Path(one.folder) / "orders.log").read_bytes() != (Path(other.folder) / "orders.log").read_bytes()


def test_every_line_is_found_again(tmp_path: Path) -> None:
    sample = written(tmp_path, "one")
    summary = mined(sample.folder)
    assert {Path(path).name: count.lines for path, count in summary.files.items()} == sample.lines
    assert summary.total.lines == sum(sample.lines.values()) >= 30_000
    assert summary.total.undecodable > 0
    assert summary.total.untimed > 0  # traces and empty lines
    assert len(summary.templates) < 60


def test_the_incidents_are_found_and_nothing_else(tmp_path: Path) -> None:
    sample = written(tmp_path, "one")
    found = find_bursts(mined(sample.folder))
    assert [(burst.kind, burst.start, burst.end) for burst in found] == [
        (burst.kind, burst.minute, burst.minute + burst.minutes - 1) for burst in sample.bursts
    ]
    assert [burst.template.count(plan.phrase) for burst, plan in zip(found, sample.bursts, strict=True)] == [0, 1, 1, 1]
