"""Small runs for the tests: a quick configuration, and what a work folder holds, digest by digest."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from manifests.commits import committed_units, read_commit

QUICK = (
    "--set",
    "masks.policy=supplied",
    "--set",
    "study.fractions=[0.5, 1.0]",
    "--set",
    "study.seeds=[0, 1]",
    "--set",
    "fusion.epochs=20",
)
"""Supplied masks, four cells a method: everything but SAM2."""


def with_proposals(*more: str) -> tuple[str, ...]:
    """`QUICK`, with masks from the embedded SAM2 on a coarse grid."""
    settings = ("masks.policy=union", "proposals.points_per_side=2", *more)
    return (*QUICK, *(part for setting in settings for part in ("--set", setting)))


def copy_source(folder: Path, to: Path) -> Path:
    """A copy of a source folder that a test may change."""
    shutil.copytree(folder, to)
    return to


def add_row(source: Path, file: Path, label: str, split: str, mask: str) -> None:
    """Append one image to a source's labels.csv."""
    with (source / "labels.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow([file.relative_to(source).as_posix(), label, split, "", mask])


def stores(dataset: Path) -> dict[str, list[str]]:
    """Committed units of every store of a data set, by its path below stages/."""
    stages = dataset / "stages"
    roots = [folder.parent for depth in ("*/*", "*/*/*") for folder in stages.glob(f"{depth}/commits")]
    return {root.relative_to(dataset / "stages").as_posix(): sorted(committed_units(root)) for root in roots}


def digests(dataset: Path) -> dict[str, dict[str, str]]:
    """sha256 of every committed file of a data set, by store and unit: attempts, times and hosts do not enter."""
    found: dict[str, dict[str, str]] = {}
    for store, units in stores(dataset).items():
        for unit in units:
            commit = read_commit(dataset / "stages" / store, unit)
            if commit is None:
                raise AssertionError(f"{store}/{unit} is listed and has no commit")
            found[f"{store}/{unit}"] = dict(commit.digests)
    return found


def events(dataset: Path) -> list[dict[str, object]]:
    """All events of the newest run."""
    newest = max((dataset / "runs").iterdir())
    return [json.loads(line) for line in (newest / "events.jsonl").read_text().splitlines()]


def committed(dataset: Path) -> list[str]:
    """Units that the newest run committed."""
    return [str(event["unit"]) for event in events(dataset) if event["event"] == "committed"]
