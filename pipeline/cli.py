"""The command line: argument parsing, and errors as two lines of text; what is heavy is imported when needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from manifests.disk import ADVICE, place
from manifests.errors import ExitCode, PipelineError, UsageError
from pipeline.cli_jobs import jobs
from pipeline.cli_options import (
    DEFAULT_WORKDIR,
    ClusterOption,
    ConfigOption,
    DatasetOption,
    JsonOption,
    PresetOption,
    SetOption,
    SourceOption,
    VerboseOption,
    WorkdirOption,
)
from pipeline.cli_predict import prediction
from pipeline.cli_store import set_up, store

app = typer.Typer(
    name="pipeline",
    help="MedFocus: SAM2 masks, CLIP embeddings, fusion and probes over whole data sets of medical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(help="Model weights on this machine; nothing is ever downloaded.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
app.add_typer(store)
app.add_typer(jobs)
app.add_typer(prediction)


@app.command()
def ingest(
    source: Annotated[Path, typer.Argument(help="Folder of images.")],
    dataset: Annotated[str, typer.Option("--dataset", help="Name of the data set.")],
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV: file, label, split, group, mask.")] = None,
    columns: Annotated[str, typer.Option("--columns", help="Column of each role: label=class,split=fold")] = "",
    drop: Annotated[str | None, typer.Option("--drop", help="Name of the new drop.")] = None,
    chunk_items: Annotated[int, typer.Option("--chunk-items", min=1, help="Images a chunk.")] = 64,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse leaks, contradictory labels, masks and shortcuts.")
    ] = False,
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    config: ConfigOption = None,
    set_: SetOption = None,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Register the images of a folder that no drop holds yet as a new drop."""
    from manifests.ingest import IngestOptions
    from pipeline.commands import do_ingest
    from pipeline.config import load_config

    options = IngestOptions(
        dataset=dataset,
        drop_id=drop,
        labels=labels,
        columns=_columns(columns),
        chunk_items=chunk_items,
        reading=load_config(config, set_ or ()).reading,
        strict=strict,
    )
    set_up(verbose=verbose)
    do_ingest(workdir, source, options, as_json=json)


@app.command()
def plan(
    stage: Annotated[str, typer.Option("--stage", help="Stage, or one, two, all.")] = "all",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Say what `run` would do and why, how much it would write and how long it might take; change nothing."""
    from pipeline.commands import open_workspace
    from pipeline.overview import do_plan

    set_up(verbose=False)
    do_plan(open_workspace(workdir, dataset, (config, set_, preset)), stage, as_json=json)


@app.command()
def run(
    stage: Annotated[str, typer.Option("--stage", help="Stage, or one, two, all.")] = "all",
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    drop: Annotated[str | None, typer.Option("--drop", help="Only chunks of this drop.")] = None,
    part: Annotated[str | None, typer.Option("--part", metavar="I/N", help="This array task's share.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many units a stage.")] = None,
    cluster: ClusterOption = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Worker processes.")] = None,
    scheduler: Annotated[str | None, typer.Option("--scheduler", help="Dask scheduler, tls://HOST:PORT.")] = None,
    scheduler_file: Annotated[Path | None, typer.Option("--scheduler-file", help="File of a Dask scheduler.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Speak to other machines without TLS.")] = False,
    source: SourceOption = None,
    verbose: VerboseOption = False,
    json: JsonOption = False,
) -> None:
    """Complete a stage and everything it needs; do only what is not committed yet."""
    from pipeline.commands import open_workspace
    from pipeline.plan import Part
    from pipeline.runner import RunOptions
    from pipeline.running import do_run

    set_up(verbose=verbose)
    overrides = list(set_ or ())
    overrides += [f"cluster.kind={cluster}"] if cluster else []
    overrides += [f"cluster.workers={workers}"] if workers else []
    overrides += [f"cluster.scheduler={scheduler}"] if scheduler else []
    overrides += [f"cluster.scheduler_file={scheduler_file}"] if scheduler_file else []
    overrides += ["cluster.insecure=true"] if insecure else []
    options = RunOptions(stage, drop, Part.parse(part) if part else None, limit, source)
    workspace = open_workspace(workdir, dataset, (config, overrides, preset), source)
    raise typer.Exit(do_run(workspace, options, as_json=json))


@app.command()
def status(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show what is committed and pending, by stage and drop: images by status, fallbacks and failures by reason."""
    from pipeline.commands import open_workspace
    from pipeline.overview import do_status

    set_up(verbose=False)
    do_status(open_workspace(workdir, dataset, (config, set_, preset)), as_json=json)


@app.command()
def report(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    dataset: DatasetOption = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    source: SourceOption = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="RUN_A RUN_B",
            help="Instead: what changed between two runs or reports, and is it chance; also: previous latest.",
        ),
    ] = None,
) -> None:
    """Write the page with scores, learning curve and gallery; print the table and the page's path."""
    from pipeline.commands import dataset_paths, do_report, open_workspace

    set_up(verbose=False)
    if compare:
        from pipeline.comparing import do_compare

        do_compare(dataset_paths(workdir, dataset), compare)
        return
    do_report(open_workspace(workdir, dataset, (config, set_, preset), source))


@app.command()
def doctor(
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    config: ConfigOption = None,
    preset: PresetOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Check versions, devices, weights, free space and the file system of the work folder."""
    from pipeline.commands import do_doctor
    from pipeline.config import load_config

    raise typer.Exit(do_doctor(workdir, load_config(config, set_ or (), preset), as_json=json))


@app.command()
def demo(
    workdir: WorkdirOption = DEFAULT_WORKDIR / "demo",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the phantoms.")] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make synthetic phantoms and run the whole pipeline on them, with the embedded models, in minutes."""
    from pipeline.demo import run_demo

    set_up(verbose=verbose)
    overrides = [*(set_ or ()), *([f"cluster.kind={cluster}"] if cluster else ())]
    raise typer.Exit(run_demo(workdir, seed, config, overrides))


@weights_app.command("list")
def weights_list(json: JsonOption = False) -> None:
    """List every model that can be named, and whether its weights are here."""
    from pipeline.commands import do_weights_list

    do_weights_list(as_json=json)


@weights_app.command("add")
def weights_add(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    file: Annotated[Path, typer.Argument(help="Checkpoint file on this machine.")],
) -> None:
    """Check a checkpoint against its architecture, record its digest and keep a copy."""
    from pipeline.commands import do_weights_add

    do_weights_add(name, file)


@weights_app.command("check")
def weights_check(name: Annotated[str, typer.Argument(help="Name of the model.")]) -> None:
    """Recompute the digests of a model's files."""
    from pipeline.commands import do_weights_check

    do_weights_check(name)


def _columns(text: str) -> dict[str, str] | None:
    """Read `role=column,role=column`."""
    if not text:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not sign or not role.strip() or not column.strip() for role, sign, column in pairs):
        raise UsageError(f"--columns {text!r} is not of the form role=column,role=column.", "Example: label=class")
    return {role.strip(): column.strip() for role, _, column in pairs}


def main() -> None:
    """Run the command line; an error of the tree becomes its exit code and two lines on stderr."""
    try:
        code = app(standalone_mode=False)
    except PipelineError as error:
        _complain(error.what, error.fix)
        code = int(error.exit_code)
    except typer.Abort:
        code = 128 + 2
    except OSError as error:
        if error.errno not in ADVICE or not isinstance(error.filename, str):
            raise
        _complain(f"Cannot use {place(Path(error.filename))}: {error.strerror}.", ADVICE[error.errno])
        code = int(ExitCode.REFUSED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors say what is wrong; anything else is a bug
            raise
        _complain(error.format_message(), "Run with --help to see what is possible.")
        code = int(ExitCode.USAGE)
    sys.exit(code)


def _complain(what: str, fix: str) -> None:
    from pipeline.terminal import visible

    typer.echo(f"error: {visible(what)}", err=True)
    if fix:
        typer.echo(f"what to do: {visible(fix)}", err=True)
