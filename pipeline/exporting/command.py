"""`pipeline export`: choose what is shown, bind the folder to it, write, and say what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from manifests.errors import ConfigError, ExitCode, UsageError
from manifests.runs import new_run_id
from pipeline.commands import print_json, say
from pipeline.destinations import check_outside_sources
from pipeline.exporting.folder import ExportFolder, default_folder, export_identity
from pipeline.exporting.kinds import KINDS, PROVENANCE, Kind
from pipeline.exporting.selection import Selection, select_export
from pipeline.provenance import export_provenance
from pipeline.workspace import Workspace

REASON = "."
"""What a reason has and a status has not: counts by reason are of images whose source could not be used."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the command line asks of an export."""

    out: Path | None = None
    """Where it goes; below the data set's folder where it is not given."""
    stage: str | None = None
    """Stage or node that is shown; the kind's first where it is not given."""
    split: str | None = None
    """Only images of this split; all where it is not given."""


def do_export(workspace: Workspace, kind: str, options: ExportOptions, *, as_json: bool) -> int:
    """Write an export, or go on with one that was stopped, print what it holds, and return the exit code.

    Raises
    ------
    UsageError
        If there is no such export, stage or split, the folder lies in a source, or an extra is not installed.
    RefusedError
        If the stage is not complete, the folder holds anything else, or the disk fails.
    """
    check_outside_sources(workspace.paths, [options.out], workspace.source)
    if kind == PROVENANCE:
        return _export_crate(workspace, options, as_json=as_json)
    if kind not in KINDS:
        raise UsageError(f"There is no export {kind!r}.", f"Exports: {', '.join((*KINDS, PROVENANCE))}.")
    _check_installed(kind, KINDS[kind])
    selection = select_export(workspace, KINDS[kind].stages, options.stage, options.split)
    identity = export_identity(kind, selection)
    folder = ExportFolder.open(options.out or default_folder(selection, identity), identity)
    counts = _write(KINDS[kind], selection, folder)
    folder.finish(selection, counts)
    _tell(kind, selection, folder, counts, as_json=as_json)
    return int(ExitCode.FAILURES if any(REASON in what for what in counts) else ExitCode.DONE)


def _write(kind: Kind, selection: Selection, folder: ExportFolder) -> dict[str, int]:
    if kind.reads_source:
        selection.workspace.check_sources(drop.drop_id for drop in selection.workspace.drops)
    module, _, function = kind.writer.partition(":")
    counts: dict[str, int] = getattr(import_module(module), function)(selection, folder)
    return counts


def _check_installed(name: str, kind: Kind) -> None:
    for module in kind.modules:
        try:
            import_module(module)
        except ModuleNotFoundError:
            fix = "Install it: pip install 'medfocus[export]'"
            raise ConfigError(f"The export {name} needs {module}, which is not installed.", fix) from None


def _export_crate(workspace: Workspace, options: ExportOptions, *, as_json: bool) -> int:
    if options.stage or options.split:
        raise UsageError(f"{PROVENANCE} shows all stages and splits.", "Leave --stage and --split out.")
    crate = export_provenance(workspace, options.out or workspace.paths.exports / f"{PROVENANCE}-{new_run_id()}")
    if as_json:
        print_json({"kind": PROVENANCE, "folder": str(crate.parent)})
    else:
        say([f"Workflow Run RO-Crate: {crate}"])
    return int(ExitCode.DONE)


def _tell(kind: str, selection: Selection, folder: ExportFolder, counts: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        print_json({"kind": kind, "stage": selection.node.key, "folder": str(folder.root), "counts": dict(counts)})
        return
    told = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no images"
    say([f"{kind} of {selection.node.key}: {told}", f"Export: {folder.root}"])
