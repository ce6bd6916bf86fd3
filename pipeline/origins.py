"""What went into two reports and differs: images, settings, models and software, in lines of words."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import pandas as pd

from manifests.drops import load_drops, load_rows
from manifests.errors import StoreError
from manifests.forgetting import WITHDRAWALS
from manifests.layout import DatasetPaths
from manifests.runs import load_run
from manifests.types import Split
from manifests.withdrawals import load_withdrawals
from pipeline.stored_reports import StoredReport
from stages.report.kept import Kept

ABSENT: Final = "nothing"
LONGEST: Final = 120
"""Characters of a value that are shown."""
DIGEST: Final = 12
"""Digits of a digest that are shown."""

Stage = Mapping[str, Any]
"""One stage of a report's provenance, see `lineage`."""


def origins(
    paths: DatasetPaths, reports: tuple[StoredReport, StoredReport], kept: tuple[Kept, Kept]
) -> dict[str, list[str]]:
    """What differs, by kind; kinds without a difference are left out.

    Parameters
    ----------
    paths : DatasetPaths
        The data set: its drops, withdrawals and runs are looked up.
    reports : tuple[StoredReport, StoredReport]
        The earlier one first.
    kept : tuple[Kept, Kept]
        Their answers.

    Raises
    ------
    InventoryError
        If a drop or a withdrawal cannot be read.
    """
    pairs = list(_pairs(*(report.provenance.get("stages", []) for report in reports)))
    found = {
        "Images": [*_drops(paths, *reports), *_withdrawals(paths, *reports), *_test_images(*kept)],
        "Settings": _once(_settings(pairs), _study(*reports)),
        "Models and weights": _once(_weights(pairs)),
        "Software": _once(_code(pairs), _versions(paths, *reports)),
    }
    if not any(found.values()):
        found["Features"] = _once(_arrays(pairs))
    return {kind: lines for kind, lines in found.items() if lines}


def lost_runs(paths: DatasetPaths, report: StoredReport) -> list[str]:
    """Runs of a report whose records cannot be read any more, so that their software is not known."""
    known = _records(paths, report)
    return [run for run in report.runs if run not in known]


def _drops(paths: DatasetPaths, a: StoredReport, b: StoredReport) -> Iterator[str]:
    before, now = ({drop["id"]: drop for drop in report.provenance.get("drops", [])} for report in (a, b))
    for name in [name for name in now if name not in before]:
        yield f"{name} is new: {now[name]['n_items']} images{_splits(paths, name)}"
    for name in [name for name in before if name not in now]:
        yield f"{name} is in A alone: {before[name]['n_items']} images"
    for name in [name for name in now if name in before]:
        if now[name]["inventory_sha256"] != before[name]["inventory_sha256"]:
            yield f"{name} has another inventory under the same name"


def _splits(paths: DatasetPaths, name: str) -> str:
    """How many images of a drop are in each split, in brackets; nothing if the drop is gone."""
    for drop in load_drops(paths):
        if drop.drop_id == name:
            counts = Counter(row.split for row in load_rows(paths, drop))
            return f" ({', '.join(f'{counts[split]} {split}' for split in Split if counts[split])})"
    return ""


def _withdrawals(paths: DatasetPaths, a: StoredReport, b: StoredReport) -> Iterator[str]:
    heeded_a, heeded_b = (set(report.provenance.get(WITHDRAWALS, [])) for report in (a, b))
    records = {record.withdrawal_id: record for record in load_withdrawals(paths)}
    for name in sorted(heeded_b - heeded_a):
        n_images = len(records[name].image_ids) if name in records else 0
        yield f"withdrawal {name}: {n_images or 'an unknown number of'} image{'s' if n_images != 1 else ''} left"
    for name in sorted(heeded_a - heeded_b):
        yield f"withdrawal {name} is heeded by A alone"


def _test_images(a: Kept, b: Kept) -> Iterator[str]:
    if a.classes != b.classes:
        yield f"classes: {', '.join(a.classes)} -> {', '.join(b.classes)}"
    common = a.images.index.intersection(b.images.index)
    for kept, what in ((b, "new"), (a, "in A alone")):
        others = kept.images.drop(common)
        if len(others):
            leaks = f", {others['flagged'].sum()} of them flagged" if others["flagged"].any() else ""
            told = f"{len(others)} of {len(kept.images)} ({_by_class(others['label'], kept.classes)})"
            yield f"test images {what}: {told}{leaks}"
    before, now = a.images.loc[common], b.images.loc[common]
    other = before["label"] != now["label"]
    if other.any():
        changed = Counter(f"{x} -> {y}" for x, y in zip(before["label"][other], now["label"][other], strict=True))
        yield f"test images with another label: {', '.join(f'{what}: {n}' for what, n in sorted(changed.items()))}"
    if (before["group"] != now["group"]).any():
        yield f"test images of another patient: {int((before['group'] != now['group']).sum())}"
    for what, less, more in (("newly", before, now), ("no longer", now, before)):
        if n := int((more["flagged"] & ~less["flagged"]).sum()):
            yield f"test images of both that are {what} flagged, as in training too: {n}"


def _by_class(labels: pd.Series, classes: Sequence[str]) -> str:
    counts = Counter(labels)
    return ", ".join(f"{name} {counts[name]}" for name in classes if counts[name])


def _pairs(before: Sequence[Stage], now: Sequence[Stage]) -> Iterator[tuple[Stage, Stage]]:
    """Stages of both that are each other's earlier and later state.

    They have one name, or are the only ones of their kind that are left: `masks[union]` and `masks[none]`.
    """
    theirs, ours = ({stage["node"]: stage for stage in stages} for stages in (before, now))
    yield from ((theirs[node], ours[node]) for node in ours if node in theirs)
    left_a, left_b = ([s for node, s in x.items() if node not in y] for x, y in ((theirs, ours), (ours, theirs)))
    for kind in dict.fromkeys(stage["stage"] for stage in left_b):
        alone = [[stage for stage in left if stage["stage"] == kind] for left in (left_a, left_b)]
        if all(len(stages) == 1 for stages in alone):
            yield alone[0][0], alone[1][0]


def _settings(pairs: Iterable[tuple[Stage, Stage]]) -> Iterator[str]:
    for before, now in pairs:
        for key, old, new in _differing(before["settings"], now["settings"]):
            if key != "classes":  # those are told with the images
                yield f"{now['stage']}.{key}: {_shown(old)} -> {_shown(new)}"


def _study(a: StoredReport, b: StoredReport) -> Iterator[str]:
    """Settings of the study itself, which no stage's identity holds: seeds, fractions, shots."""
    before, now = (_overrides(report.command) for report in (a, b))
    for key in sorted({*before, *now}):
        old, new = before.get(key, "default"), now.get(key, "default")
        if old != new and key.startswith("study."):
            yield f"{key}: {old} -> {new}"


def _overrides(command: str) -> dict[str, str]:
    words = shlex.split(command)
    pairs = [word.partition("=") for before, word in pairwise(words) if before == "--set"]
    return {key: value for key, _, value in pairs}


def _weights(pairs: Iterable[tuple[Stage, Stage]]) -> Iterator[str]:
    for before, now in pairs:
        for file, old, new in _differing(before["weights"], now["weights"]):
            yield f"{file}: {str(old)[:DIGEST]} -> {str(new)[:DIGEST]}"


def _code(pairs: Iterable[tuple[Stage, Stage]]) -> Iterator[str]:
    for before, now in pairs:
        if before["version"] != now["version"]:
            yield f"code of the stage {now['stage']}: version {before['version']} -> {now['version']}"


def _versions(paths: DatasetPaths, a: StoredReport, b: StoredReport) -> Iterator[str]:
    """What the runs that computed a report's results ran on, where their records are there."""
    before, now = (_environment(_records(paths, report).values()) for report in (a, b))
    if before and now:
        yield from (f"{name}: {old} -> {new}" for name, old, new in _differing(before, now))


def _records(paths: DatasetPaths, report: StoredReport) -> dict[str, dict[str, str]]:
    """What each run of a report ran on, by package and the like; runs whose record is lost are left out."""
    found = {}
    for run in report.runs:
        try:
            record = load_run(paths.run(run))
        except StoreError:
            continue
        told = {"program": _short(record.git), "python": record.python, "platform": record.platform}
        found[run] = {**told, "GPU": record.gpu or "none", **record.versions}
    return found


def _short(commit: str | None) -> str:
    """A commit of the program by its first digits, and whether files differed from it."""
    digits, _, dirty = (commit or ABSENT).partition("-")
    return f"{digits[:DIGEST]}{' with changes' if dirty else ''}"


def _environment(records: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Every value by name; several of one name where runs differ."""
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, set()).add(value)
    return {name: " and ".join(sorted(found)) for name, found in values.items()}


def _arrays(pairs: Iterable[tuple[Stage, Stage]]) -> Iterator[str]:
    """Stages that read other arrays though nothing else differs."""
    for before, now in pairs:
        if before["upstream"].get("data") != now["upstream"].get("data"):
            yield f"the arrays that {now['stage']} reads are other ones: they were computed anew, perhaps elsewhere"


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys((*now, *before)):
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if old != new:
            yield key, old, new


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _once(*lines: Iterable[str]) -> list[str]:
    """All lines in order, none twice: stages of several mask policies share their settings."""
    return list(dict.fromkeys(line for some in lines for line in some))
