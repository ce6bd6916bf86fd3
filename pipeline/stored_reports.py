"""Reports that stand in a work folder, and the names by which a user can mean one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from manifests.errors import InventoryError, UsageError
from manifests.events import REPORTED, read_events
from manifests.layout import DatasetPaths, Workdir
from stages.report.kept import KEPT, Kept
from stages.report.page import PAGE

LATEST, PREVIOUS = "latest", "previous"
REPORT_NAME: Final = re.compile(r"[0-9a-f]{12}")
SHOWN: Final = 5
"""Reports and runs that an error names."""


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One report, as its folder keeps it."""

    folder: Path
    provenance: Mapping[str, Any]

    @property
    def name(self) -> str:
        """First 12 digits of its fingerprint."""
        return self.folder.name

    @property
    def created(self) -> str:
        """UTC time, ISO 8601; of a report that does not say so, that of its page."""
        written = datetime.fromtimestamp((self.folder / PAGE).stat().st_mtime, UTC)
        return str(self.provenance.get("created") or written.isoformat(timespec="seconds"))

    @property
    def command(self) -> str:
        """Command line that made it."""
        return str(self.provenance.get("command", "pipeline report"))

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that computed what it shows, sorted."""
        return tuple(sorted({str(run) for stage in self.provenance.get("stages", []) for run in stage["runs"]}))

    def kept(self) -> Kept:
        """What every test image was answered.

        Raises
        ------
        InventoryError
            If the report was made before answers, or the class that each names, were kept.
        DamagedError
            If they are damaged.
        """
        file = self.folder / KEPT
        try:
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise InventoryError(
                f"Report {self.name} (made {self.created}) has no {KEPT}: an older version of this tool made it.",
                f"While its results stand, make it again, under another name: {self.command}",
            ) from error
        return Kept.from_bytes(data, f"reports/{self.name}/{KEPT}")


def load_reports(paths: DatasetPaths) -> list[StoredReport]:
    """Every whole report of a data set, in the order in which they were made."""
    folders = paths.reports.iterdir() if paths.reports.is_dir() else ()
    whole = [folder for folder in folders if REPORT_NAME.fullmatch(folder.name) and (folder / PAGE).is_file()]
    return sorted(
        (StoredReport(folder, _provenance(folder)) for folder in whole),
        key=lambda report: (report.created, report.name),
    )


def find_report(paths: DatasetPaths, name: str) -> StoredReport:
    """The report that a name means.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    name : str
        A report or a beginning of its name; a run or a beginning of its id, which means the report that it ended with,
        else the first that shows something it computed; `latest` or `previous`, by the time when they were made.

    Raises
    ------
    UsageError
        If it means nothing or several things, or something of another data set.
    InventoryError
        If it means a run without a report, or a report that is gone.
    """
    reports = load_reports(paths)
    if name in (LATEST, PREVIOUS):
        place = 1 if name == LATEST else 2
        if len(reports) < place:
            raise InventoryError(
                f"There is no {name} report: the data set {paths.name!r} has {_count(reports)}.",
                "Make one of the state at hand: pipeline report",
            )
        return reports[-place]
    runs = [run for run in _runs(paths) if name and run.startswith(name)]
    named = [report for report in reports if name and report.name.startswith(name)]
    if len(runs) + len(named) > 1:
        meant = ", ".join([*(f"report {report.name}" for report in named), *(f"run {run}" for run in runs)][:SHOWN])
        raise UsageError(f"{name!r} means {len(runs) + len(named)} things: {meant}.", "Write more of the name.")
    if named:
        return named[0]
    if runs:
        return _of_run(paths, runs[0], reports)
    raise _unknown(paths, name, reports)


def _of_run(paths: DatasetPaths, run: str, reports: Sequence[StoredReport]) -> StoredReport:
    log = paths.run(run) / "events.jsonl"
    events = read_events(log) if log.is_file() else []
    ended = [str(event.get("report")) for event in events if event.get("event") == REPORTED]
    by_name = {report.name: report for report in reports}
    if ended and ended[-1] not in by_name:
        raise InventoryError(
            f"Run {run} ended with report {ended[-1]}, which is not there any more.",
            f"gc removes reports made before a withdrawal. Reports: {_listed(reports)}.",
        )
    shows = [report for report in reports if run in report.runs]
    if not ended and not shows:
        raise InventoryError(
            f"Run {run} has no report: it ended with none, and no report shows what it computed.",
            f"Make one: pipeline report, with the run's configuration. Reports: {_listed(reports)}.",
        )
    return by_name[ended[-1]] if ended else shows[0]


def _unknown(paths: DatasetPaths, name: str, reports: Sequence[StoredReport]) -> UsageError:
    work = Workdir(paths.root.parent)
    for other in (work.dataset(known) for known in work.datasets() if name and known != paths.name):
        if any(known.startswith(name) for known in (*_runs(other), *(report.name for report in load_reports(other)))):
            return UsageError(
                f"{name!r} belongs to the data set {other.name!r}, and this one is {paths.name!r}.",
                "Two reports of one data set can be compared; choose it with: --dataset NAME",
            )
    runs = ", ".join(_runs(paths)[-SHOWN:]) or "none"
    return UsageError(
        f"{name!r} is no report and no run of the data set {paths.name!r}.",
        f"Reports: {_listed(reports)}. Runs: {runs}. Or: {PREVIOUS}, {LATEST}.",
    )


def _runs(paths: DatasetPaths) -> list[str]:
    return sorted(folder.name for folder in paths.runs.iterdir()) if paths.runs.is_dir() else []


def _listed(reports: Sequence[StoredReport]) -> str:
    return ", ".join(f"{report.name} ({report.created[:16]})" for report in reports[-SHOWN:]) or "none"


def _count(reports: Sequence[StoredReport]) -> str:
    return "one report" if len(reports) == 1 else f"{len(reports) or 'no'} reports"


def _provenance(folder: Path) -> dict[str, Any]:
    """What a report follows from; nothing if that cannot be read."""
    try:
        found = json.loads((folder / "provenance.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
