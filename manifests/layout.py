"""Every path under the work folder; no other module joins one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manifests.errors import InventoryError, UsageError

EXPORT_RECORD, EXPORT_SCHEMA = "export.json", "medfocus.export"
"""File of every export, and its `schema` there: by them ingest knows an export and `gc` the withdrawals it heeds."""
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_name(kind: str, name: str) -> str:
    """Return a data set's or drop's name if it is safe as a folder name.

    Raises
    ------
    UsageError
        If the name is empty, too long, hidden, or has other characters than letters, digits, `.`, `_` and `-`.
    """
    if not name or len(name) > 64 or name[0] in ".-" or not set(name) <= NAME_CHARACTERS:
        raise UsageError(
            f"{kind} {name!r} cannot be a folder name.",
            "Use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit.",
        )
    return name


@dataclass(frozen=True, slots=True)
class DatasetPaths:
    """Paths of one data set below the work folder."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.root.name

    @property
    def drops(self) -> Path:
        """Folder of all drops; the only place that holds source paths."""
        return self.root / "drops"

    def drop(self, drop_id: str) -> Path:
        """Folder of one drop: drop.json, inventory.csv, audit.json."""
        return self.drops / drop_id

    @property
    def locations(self) -> Path:
        """Where renamed source files are now, by image_id."""
        return self.drops / "locations.json"

    @property
    def withdrawals(self) -> Path:
        """Folder of what was withdrawn."""
        return self.root / "withdrawals"

    def stage(self, stage: str, fingerprint: str) -> Path:
        """Folder of one stage under one fingerprint; the first 12 digits of it name the folder."""
        return self.root / "stages" / stage / fingerprint[:12]

    def stage_identity(self, stage: str, fingerprint: str) -> Path:
        """File with the identity in full, written once."""
        return self.stage(stage, fingerprint) / "stage.json"

    def map_store(self, stage: str, fingerprint: str, drop_id: str) -> Path:
        """Folder with data.zarr and commits of a map stage for one drop."""
        return self.stage(stage, fingerprint) / drop_id

    @property
    def runs(self) -> Path:
        """Folder of all runs; their names sort by time."""
        return self.root / "runs"

    def run(self, run_id: str) -> Path:
        """Folder of one run: run.json, events.jsonl."""
        return self.runs / run_id

    @property
    def exports(self) -> Path:
        """Folder of exports that were given no other."""
        return self.root / "exports"

    @property
    def predictions(self) -> DatasetPaths:
        """Images without a label that a head of this data set was asked about: drops, stages and runs of their own."""
        return DatasetPaths(self.root / "predictions")

    @property
    def reports(self) -> Path:
        """Folder of all reports and of comparisons between two of them."""
        return self.root / "reports"

    def report(self, fingerprint: str) -> Path:
        """Folder of one report."""
        return self.reports / fingerprint[:12]

    def comparison(self, a: str, b: str) -> Path:
        """Folder of what changed from one report to another, which their fingerprints name."""
        return self.reports / f"compare-{a[:12]}-{b[:12]}"

    def calibration(self, fingerprint: str) -> Path:
        """Folder of the temperature of one head."""
        return self.root / "calibrations" / fingerprint[:12]


@dataclass(frozen=True, slots=True)
class UnitPaths:
    """Folders of the commit protocol below a map store or a cell stage."""

    root: Path

    @property
    def data(self) -> Path:
        """The Zarr group of a map store."""
        return self.root / "data.zarr"

    @property
    def commits(self) -> Path:
        """Folder of what is true."""
        return self.root / "commits"

    @property
    def staging(self) -> Path:
        """Folder of what is being written."""
        return self.root / "staging"

    @property
    def retired(self) -> Path:
        """Folder of what was true once."""
        return self.root / "retired"

    def commit(self, unit: str) -> Path:
        """Folder of one committed unit."""
        return self.commits / unit

    def record(self, unit: str) -> Path:
        """Commit record of one unit."""
        return self.commit(unit) / "commit.json"


@dataclass(frozen=True, slots=True)
class Workdir:
    """The work folder: one folder a data set."""

    root: Path

    def dataset(self, name: str) -> DatasetPaths:
        """Paths of one data set, which need not exist yet.

        Raises
        ------
        UsageError
            If the name cannot be a folder name.
        """
        return DatasetPaths(self.root / check_name("Data set", name))

    def datasets(self) -> tuple[str, ...]:
        """Names of all data sets that have been ingested, sorted."""
        if not self.root.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.root.iterdir() if (p / "drops").is_dir()))

    def only_dataset(self) -> str:
        """Name of the data set if there is exactly one.

        Raises
        ------
        InventoryError
            If there is none.
        UsageError
            If there are several.
        """
        names = self.datasets()
        if not names:
            raise InventoryError(
                f"The work folder {self.root} holds no data set.",
                "Start with: pipeline ingest SOURCE --dataset NAME",
            )
        if len(names) > 1:
            raise UsageError(f"The work folder holds several data sets: {', '.join(names)}.", "Choose: --dataset NAME")
        return names[0]
