"""The command that asks a fitted head about images without a label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import (
    DEFAULT_WORKDIR,
    ClusterOption,
    ConfigOption,
    DatasetOption,
    JsonOption,
    PresetOption,
    SetOption,
    VerboseOption,
    WorkdirOption,
)
from pipeline.cli_store import set_up

prediction = typer.Typer()


@prediction.command()
def predict(
    source: Annotated[Path, typer.Argument(help="Folder of images; names of folders mean nothing.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="CELL", help="medfocus-100-0, or probes[box]/medfocus-100-0.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the tables.")] = None,
    overlay: Annotated[Path | None, typer.Option("--overlay", help="Folder for a picture of each image.")] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Show files' paths in the tables; they may name patients.")
    ] = False,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Ask a fitted head of the study about images without a label: class, probability, mask, and what is like them."""
    from pipeline.commands import open_workspace
    from pipeline.predict import PredictOptions, do_predict

    set_up(verbose=verbose)
    overrides = [*(set_ or ()), *([f"cluster.kind={cluster}"] if cluster else ())]
    workspace = open_workspace(workdir, dataset, (config, overrides, preset))
    raise typer.Exit(do_predict(workspace, PredictOptions(source, cell, out, overlay, names), as_json=json))
