"""What past runs say of the time that units take, and of units that failed for good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from manifests.events import read_events
from manifests.layout import DatasetPaths

RUNS = 10
"""Newest runs that are looked at."""
TAIL_BYTES = 2**20
"""Of each run's events the last ones are read."""
UNITS = 100
"""Newest units of a stage whose times are averaged."""


@dataclass(frozen=True, slots=True)
class History:
    """What the newest runs did."""

    seconds: Mapping[str, float]
    """Mean seconds that one worker spent on a unit, by stage."""
    failures: Mapping[str, str]
    """Cause by unit (`node/drop/unit` or `node/unit`) of each that failed for good when it was last tried."""


def read_history(paths: DatasetPaths) -> History:
    """Read the newest runs of a data set; a run whose events are missing or torn says less."""
    seconds: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {}
    for event in _events(paths):
        unit = str(event.get("unit", ""))
        if event["event"] == "failed":
            failures[unit] = str(event.get("cause", ""))
        elif event["event"] == "committed":
            failures.pop(unit, None)
            seconds[stage_of(unit)].append(sum(event.get("timings", {}).values()))
    return History({stage: fmean(times[-UNITS:]) for stage, times in seconds.items()}, failures)


def stage_of(unit: str) -> str:
    """Stage of a unit's name: `masks` of `masks[union]/drop-001/000003`."""
    return unit.partition("/")[0].partition("[")[0]


def _events(paths: DatasetPaths) -> Iterator[dict[str, Any]]:
    """Events of the newest runs, oldest first."""
    runs = sorted(paths.runs.iterdir())[-RUNS:] if paths.runs.is_dir() else []
    for run in runs:
        yield from (event for event in _tail(run / "events.jsonl") if "event" in event)


def _tail(file: Path) -> list[dict[str, Any]]:
    try:
        return read_events(file, TAIL_BYTES)
    except FileNotFoundError:
        return []
