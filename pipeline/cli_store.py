"""Commands about what is in the work folder: drops and withdrawals, checks and repairs, and where results come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import (
    DEFAULT_WORKDIR,
    ConfigOption,
    DatasetOption,
    JsonOption,
    PresetOption,
    SetOption,
    SourceOption,
    WorkdirOption,
)

store = typer.Typer()


def set_up(*, verbose: bool) -> None:
    """Send the log to stderr."""
    from pipeline.logs import set_up_logging

    set_up_logging(verbose=verbose)


@store.command()
def drops(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    json: JsonOption = False,
) -> None:
    """List the drops of a data set: images, splits, what the audit flags, what was withdrawn."""
    from pipeline.commands import dataset_paths
    from pipeline.withdrawing import do_drops

    do_drops(dataset_paths(workdir, dataset), as_json=json)


@store.command()
def withdraw(
    reason: Annotated[str, typer.Option("--reason", help="Why, without a name: it is recorded.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="ID", help="An image: id, path (all its frames) or path#frame; can be repeated."
        ),
    ] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", help="A patient, as the CSV or PatientID names it.")
    ] = None,
    drop: Annotated[str | None, typer.Option("--drop", help="A whole drop.")] = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    json: JsonOption = False,
) -> None:
    """Take images out of every later result, for good; `gc --delete` then removes their pixels."""
    from pipeline.commands import dataset_paths
    from pipeline.withdrawing import do_withdraw

    do_withdraw(
        dataset_paths(workdir, dataset),
        reason,
        drop=drop or "",
        images=image or (),
        patient=patient or "",
        as_json=json,
    )


@store.command()
def explain(
    what: Annotated[str, typer.Argument(metavar="ID", help="Image id, path[#frame], drop-001/000003, medfocus-5-0.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show every record that touched an image, a chunk or a cell, from the source file to the score."""
    from pipeline.commands import open_workspace
    from pipeline.explain_text import do_explain

    set_up(verbose=False)
    do_explain(open_workspace(workdir, dataset, (config, set_, preset)), what, as_json=json)


@store.command()
def verify(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    json: JsonOption = False,
) -> None:
    """Recompute the digest of every committed file of a data set, under every configuration."""
    from pipeline.commands import dataset_paths, do_verify

    set_up(verbose=False)
    raise typer.Exit(do_verify(dataset_paths(workdir, dataset), as_json=json))


@store.command()
def repair(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Make every damaged unit of a data set pending, so that the next run computes it anew; restore metadata."""
    from pipeline.commands import open_workspace
    from pipeline.mending import do_repair

    raise typer.Exit(do_repair(open_workspace(workdir, dataset, (config, set_, preset)), as_json=json))


@store.command()
def retry(
    reason: Annotated[str, typer.Option("--reason", metavar="CODE", help="Reason code, such as file.missing.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Make chunks pending whose images failed for a reason that is gone, so that the next run computes them anew."""
    from pipeline.commands import open_workspace
    from pipeline.mending import do_retry

    raise typer.Exit(do_retry(open_workspace(workdir, dataset, (config, set_, preset)), reason, as_json=json))


@store.command()
def gc(
    days: Annotated[float, typer.Option("--days", min=0, help="Only what has not changed for so long.")] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is listed.")] = False,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    json: JsonOption = False,
) -> None:
    """List, or delete, what nothing leads to: leftovers of killed processes older than --days, and withdrawn images."""
    from pipeline.commands import dataset_paths
    from pipeline.mending import DAY_S, do_gc

    raise typer.Exit(do_gc(dataset_paths(workdir, dataset), days * DAY_S, delete=delete, as_json=json))


@store.command()
def export(
    kind: Annotated[str, typer.Argument(help="coco, png, parquet, dicom-seg, nifti or provenance.")],
    out: Annotated[Path | None, typer.Argument(help="Folder; exports/KIND-... of the data set by default.")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="What to show: masks, masks[none], ...")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only train, val or test.")] = None,
    source: SourceOption = None,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write what is committed in a form that other tools read; run it again to go on after a kill."""
    from pipeline.commands import open_workspace
    from pipeline.exporting.command import ExportOptions, do_export

    set_up(verbose=False)
    workspace = open_workspace(workdir, dataset, (config, set_, preset), source)
    raise typer.Exit(do_export(workspace, kind, ExportOptions(out, stage, split), as_json=json))
