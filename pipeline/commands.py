"""What each command does once its arguments are read: call the pipeline, print what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manifests.audit import Audit
from manifests.drops import verify_drops
from manifests.errors import ExitCode, InventoryError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.integrity import verify
from manifests.layout import DatasetPaths, Workdir
from manifests.pseudonyms import check_salt_outside
from pipeline.config import RunConfig, load_config
from pipeline.doctor import examine
from pipeline.logs import counter, log
from pipeline.terminal import print_table, visible
from pipeline.workspace import Workspace
from stages.models.weights import WeightsFolder

if TYPE_CHECKING:
    from pipeline.results import Built

SHOWN = 20
"""Conflicts that ingest prints at most."""
MANY_STUDIES = 3
"""One patient with more studies than this, and most files, may be no patient."""
ConfigSources = tuple[Path | None, Sequence[str] | None, str | None]
"""Configuration file, overrides, preset."""


def dataset_paths(workdir: Path, dataset: str | None) -> DatasetPaths:
    """Paths of the named data set, or of the only one.

    Raises
    ------
    InventoryError
        If it does not exist.
    """
    work = Workdir(workdir.resolve())
    paths = work.dataset(dataset or work.only_dataset())
    if not paths.drops.is_dir():
        known = ", ".join(work.datasets()) or "none"
        raise InventoryError(
            f"There is no data set {paths.name!r} in {workdir} (known: {known}).",
            f"Start with: pipeline ingest SOURCE --dataset {paths.name}",
        )
    return paths


def open_workspace(workdir: Path, dataset: str | None, sources: ConfigSources, source: Path | None = None) -> Workspace:
    """The data set under the configuration that file, overrides and preset give."""
    file, overrides, preset = sources
    config = load_config(file, overrides or (), preset)
    workspace = Workspace(dataset_paths(workdir, dataset), config, source)
    workspace.check_reading()
    return workspace


def do_ingest(workdir: Path, source: Path, options: IngestOptions, *, as_json: bool) -> None:
    """Ingest a source folder and say what was found."""
    check_salt_outside(workdir)
    paths = Workdir(workdir.resolve()).dataset(options.dataset)
    report = ingest(paths, source, options, counter("digests"), counter("pictures"))
    if as_json:
        print_json(_ingest_json(report))
        return
    say(_ingest_lines(report))


def _ingest_json(report: IngestReport) -> dict[str, Any]:
    apart = ("drop", "audit", "files")
    fields = {name: getattr(report, name) for name in IngestReport.__dataclass_fields__ if name not in apart}
    audit = report.audit.model_dump(mode="json") if report.audit else None
    return {**fields, "drop": report.drop.drop_id if report.drop else None, "audit": audit}


def _ingest_lines(report: IngestReport) -> Iterable[str]:
    if report.drop is None:
        yield f"Nothing new: {report.unchanged} images are known already."
    else:
        chunks = len(report.drop.chunks())
        yield f"{report.drop.drop_id}: {report.new} images in {chunks} chunks"
        yield f"  classes: {', '.join(report.drop.classes) or 'none'}"
    counts = {
        "renamed": report.renamed,
        "vanished from the source": report.vanished,
        "changed in the source": report.changed,
        "duplicates": report.duplicates,
        "other files of pictures in earlier drops": report.pictures_known,
        "files ignored": report.ignored,
    }
    for name, count in counts.items():
        if count:
            yield f"  {name}: {count}"
    for image_id in report.conflicts[:SHOWN]:
        yield f"  differs in the source, nothing changed here: {image_id}"
    if more := len(report.conflicts) - SHOWN:
        yield from [f"  and {more} more differ; --json names them all"] if more > 0 else []
    if report.absent:
        yield f"  lines of the CSV whose UIDs name nothing here: {report.absent}"
    if report.unreadable:
        yield f"  DICOM files whose UIDs cannot be read, so that no line can name them: {report.unreadable}"
    if report.unnamed:
        yield f"  images in the source that the CSV does not name: {report.unnamed}"
    for what, count in sorted(report.skipped.items()):
        yield f"  DICOM files without an image, skipped: {count} {what}"
    if said := report.burned_in.get("YES", 0):
        yield f"  DICOM files that say that text is burned into their pixels: {said}; nothing removes it"
    if silent := report.burned_in.get("", 0):
        yield f"  DICOM files that do not say whether text is burned into their pixels: {silent}; look at them"
    files, studies = report.shared_patient
    if studies > MANY_STUDIES and 2 * files > sum(report.burned_in.values()):
        yield f"  one PatientID stands in {files} DICOM files of {studies} studies, which so are one patient's and stay"
        yield "    together; if it is a stand-in, name patients or studies in a CSV: group"
    if report.drop and report.without_patient:
        without = report.without_patient
        yield f"  images without a patient (no group): {without}; each file counts as a patient of its own"
    if report.leaks:
        earlier = f", {report.leaking_earlier} of them in earlier drops" if report.leaking_earlier else ""
        yield f"  test images that are in train too: {report.leaking}{earlier}; scores are given with and without them"
    if report.audit:
        yield from _audit_lines(report.audit)


def _audit_lines(audit: Audit) -> Iterable[str]:
    """What the audit found beside leaks."""
    counts = {
        "pictures in two splits, as other files": audit.twins_across_splits,
        "pictures with two labels": audit.label_conflicts,
        "masks among the images": audit.masks_as_images,
        "unreadable; `pipeline run` records each with its reason": tuple(audit.unreadable),
    }
    for name, images in counts.items():
        if images:
            yield f"  {name}: {len(images)} images"
    for confound in audit.confounded:
        yield (
            f"  confounded: {confound.probed} alone tell the classes with a balanced accuracy of "
            f"{confound.balanced_accuracy:.0%} (chance {confound.chance:.0%})"
        )
    for shift in audit.shifts:
        if shift.is_notable:
            yield f"  shift of {shift.of} against earlier drops: {shift.distance:.2f} (p = {shift.p_value:.1g})"
    if audit.not_compared:
        yield f"  earlier images whose pixels could not be compared: {audit.not_compared}"


def store_roots(paths: DatasetPaths) -> list[Path]:
    """Folder of every map store and cell stage of a data set, under every configuration, sorted."""
    return sorted(folder.parent for folder in (paths.root / "stages").rglob("commits") if folder.is_dir())


def do_verify(paths: DatasetPaths, *, as_json: bool) -> int:
    """Check every drop and every commit of a data set; name each damaged file; return the exit code."""
    roots = store_roots(paths)
    lost = verify_drops(paths)
    damages = [(root.relative_to(paths.root).as_posix(), damage) for root in roots for damage in verify(root)]
    if as_json:
        told = [{"store": "drops", "unit": "", "path": "", "problem": problem} for problem in lost]
        print_json([*told, *({"store": root, **asdict(damage)} for root, damage in damages)])
    else:
        say(f"drops: {problem}" for problem in lost)
        say(f"{root}: {damage.unit}: {damage.path}: {damage.problem}" for root, damage in damages)
        advice = " Go on with: pipeline repair" if damages else ""
        say([f"{len(roots)} stores verified, {len(damages)} damaged files.{advice}"])
        say([f"{len(lost)} records of drops are damaged."] if lost else [])
    return int(ExitCode.REFUSED if damages or lost else ExitCode.DONE)


def do_report(workspace: Workspace, *, quiet: bool = False) -> Path:
    """Write the report and return its page; print its tables and its path, unless quiet."""
    from pipeline.results import build_report

    built = build_report(workspace)
    if not quiet:
        _print_scores(built)
        say([f"Report: {built.page}"])
    return built.page


def _print_scores(built: Built) -> None:
    from stages.report.tables import by_kind, n_flagged, summary_table

    flagged = n_flagged(built.scores)
    say(["Test accuracy in percent: mean ± sd over seeds (correct/all answers, pooled)"])
    for unflagged in (False, True) if flagged else (False,):
        if unflagged:
            say(["", f"The same without the {flagged} flagged test images, which also occur in training"])
        for number, scores in enumerate(by_kind(built.scores)):
            say([""] * number)
            table = summary_table(scores, unflagged=unflagged)
            print_table([str(c) for c in table.columns], [tuple(row) for row in table.itertuples(index=False)])
    if built.cautions:
        say([f"Cautions: {len(built.cautions)}; they stand at the top of the report."])


def do_doctor(workdir: Path, config: RunConfig, *, as_json: bool) -> int:
    """Print one line a check; return the exit code."""
    checks = []
    for check in examine(workdir, config):
        checks.append(check)
        if not as_json:
            typer.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    if as_json:
        print_json([asdict(check) for check in checks])
    return int(ExitCode.DONE if all(check.ok for check in checks) else ExitCode.USAGE)


def do_weights_list(*, as_json: bool) -> None:
    """Print every model of the registry."""
    rows = [asdict(row) for row in WeightsFolder().list_models()]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "kind", "source", "present", "sha256"),
        [(r["name"], r["kind"], r["source"], "yes" if r["present"] else "no", (r["sha256"] or "")[:12]) for r in rows],
    )


def do_weights_add(name: str, file: Path) -> None:
    """Add a checkpoint file and print its record."""
    record = WeightsFolder().add(name, file)
    say([f"{record.name}: {record.bytes} bytes, sha256 {record.sha256}"])


def do_weights_check(name: str) -> None:
    """Recompute digests of a model's files."""
    digests = WeightsFolder().check(name)
    say(f"{file}: {digest}" for file, digest in sorted(digests.items()))
    log.debug("checked %s", name)


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout."""
    typer.echo(json.dumps(value))


def say(lines: Iterable[str]) -> None:
    """Print lines on stdout as they come."""
    for line in lines:
        typer.echo(visible(line))
