"""The command that writes batch scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli_options import (
    DEFAULT_WORKDIR,
    ClusterOption,
    ConfigOption,
    DatasetOption,
    PresetOption,
    SetOption,
    SourceOption,
    WorkdirOption,
)
from pipeline.cli_store import set_up

jobs = typer.Typer()


@jobs.command()
def submit(
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="Stages, each after the one before; one and two.")
    ] = None,
    array: Annotated[int, typer.Option("--array", min=1, help="Tasks that share a stage's chunks.")] = 1,
    name: Annotated[str, typer.Option("--name", help="Begins the jobs' names.")] = "medfocus",
    out: Annotated[Path, typer.Option("--out", help="Folder for the scripts and what the jobs print.")] = Path("jobs"),
    send: Annotated[bool, typer.Option("--send", help="Submit them, too.")] = False,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    source: SourceOption = None,
) -> None:
    """Write Slurm batch scripts, one a stage, that resume by themselves at the end of their walltime."""
    from pipeline.commands import dataset_paths
    from pipeline.config import load_config
    from pipeline.submit import check_name, do_submit

    set_up(verbose=False)
    overrides = [*(set_ or ()), *([f"cluster.kind={cluster}"] if cluster else [])]
    arguments = ["--workdir", str(workdir.resolve()), "--dataset", dataset_paths(workdir, dataset).name]
    arguments += ["--config", str(config.resolve())] if config else []
    arguments += ["--preset", preset] if preset else []
    arguments += ["--source", str(source.resolve())] if source else []
    arguments += [part for text in overrides for part in ("--set", text)]
    do_submit(
        tuple(stages or ("one", "two")),
        arguments,
        load_config(config, overrides, preset),
        parts=array,
        target=out.resolve() / check_name(name),
        really=send,
    )
