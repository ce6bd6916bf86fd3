"""What the audit at ingest finds on real image sets, against their answer key, and what it costs.

`python -m tests.benchmarks.audit_quality [--json] [--full]`. The key (`train_twin`, `group`, `group_has_two_classes` in
each set's index.csv) is read here alone; the audit sees pixels, splits and labels. A leaked test image is one with a
twin in training; recall and precision count test images. `pairs_in_one_group` is the share of twin pairs that the key
holds for the same picture, too: the key is stricter, so look at the others before calling them wrong (`--full` lists
them). Times are of a whole ingest: digests, decoding, hashes, pairs, probes. The sets lie in MEDFOCUS_DATA, or in
shared/data beside the checkout.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from manifests.audit import Audit, flagged
from manifests.drops import load_drops, load_rows
from manifests.ingest import IngestOptions, ingest
from manifests.layout import Workdir
from tests.benchmarks.segmentation.cases import set_folder

SIZES: Final = (1000, 2000, 4000, 7000)


@dataclass(frozen=True)
class Audited:
    """One ingested set."""

    audit: Audit
    flagged: frozenset[str]
    """Paths of test images that the audit flags."""
    paths: dict[str, list[str]]
    """Paths of each image_id."""
    seconds: float


def read_key(folder: Path) -> list[dict[str, str]]:
    """Rows of a set's index.csv."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def audited(folder: Path, rows: list[dict[str, str]]) -> Audited:
    """Ingest some images of a set into a work folder of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch, "labels.csv")
        with labels.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "label", "split"))
            writer.writerows((row["file"], row["class"], row["split"]) for row in rows)
        paths = Workdir(Path(scratch)).dataset("set")
        started = time.perf_counter()
        report = ingest(paths, folder, IngestOptions(dataset="set", labels=labels))
        seconds = time.perf_counter() - started
        found = load_rows(paths, load_drops(paths)[0])
    if report.audit is None:
        raise ValueError(f"{folder.name}: nothing was ingested")
    names: dict[str, list[str]] = {}
    for row in found:
        names.setdefault(row.image_id, []).append(row.path)
    leaks = flagged(found, report.audit.twins)
    marked = frozenset(row.path for row in found if row.split == "test" and row.image_id in leaks)
    return Audited(report.audit, marked, names, seconds)


def measure(name: str, *, listed: bool) -> dict[str, Any]:
    """Compare the audit of one set with its key."""
    folder = set_folder(name)
    key = read_key(folder)
    result = audited(folder, key)
    leaked = {row["file"] for row in key if row["split"] == "test" and row["train_twin"]}
    group = {row["file"]: row["group"] for row in key}
    conflicts = {row["file"] for row in key if row["group_has_two_classes"] == "1"}
    told = {path for image_id in result.audit.label_conflicts for path in result.paths[image_id]}
    pairs = [
        (result.paths[twin.image_id][0], result.paths[twin.other_id][0], twin.how, twin.correlation)
        for twin in result.audit.twins
    ]
    other = [pair for pair in pairs if group[pair[0]] != group[pair[1]]]
    if listed:
        for pair in other:
            print("another group in the key:", *pair)
    found = len(leaked & result.flagged)
    return {
        "images": len(key),
        "leaked": len(leaked),
        "found": found,
        "recall": found / len(leaked) if leaked else None,
        "precision": found / len(result.flagged) if result.flagged else None,
        "pairs": len(pairs),
        "pairs_in_one_group": 1 - len(other) / max(1, len(pairs)),
        "label_conflicts_in_key": len(conflicts),
        "label_conflicts_found": len(conflicts & told),
        "label_conflicts_told": len(told),
        "confounded": {c.probed: [c.balanced_accuracy, c.chance, c.is_confounded] for c in result.audit.confounds},
        "seconds": round(result.seconds, 2),
    }


def growth() -> dict[str, float]:
    """Seconds per 1,000 images of the brain set, by number of images."""
    folder = set_folder("brain")
    key = sorted(read_key(folder), key=lambda row: row["sha256"])
    return {str(n): 1000 * audited(folder, key[:n]).seconds / len(key[:n]) for n in SIZES}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--full", action="store_true", help="list pairs that the key puts into different groups")
    options = parser.parse_args()
    if not set_folder("brain").is_dir():
        print("The image sets are not here; MEDFOCUS_DATA names their folder.")
        return
    sets = {
        name: measure(name, listed=options.full and not options.json) for name in ("brain", "covid", "busi", "chest")
    }
    costs = growth()
    if not options.json:
        for name, found in sets.items():
            print(name, *(f"{what}={value}" for what, value in found.items()), sep="\n  ")
        for n, seconds in costs.items():
            print(f"{n} images: {seconds:.2f} s per 1,000")
        return
    print(
        json.dumps(
            {
                "brain_recall": sets["brain"]["recall"],
                "brain_precision": sets["brain"]["precision"],
                "covid_found": sets["covid"]["found"],
                "covid_precision": sets["covid"]["precision"],
                "seconds_per_1000": costs,
                "growth_1k_to_7k": costs["7000"] / costs["1000"],
                "sets": sets,
            }
        )
    )


if __name__ == "__main__":
    main()
