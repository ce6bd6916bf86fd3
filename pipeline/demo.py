"""`pipeline demo`: phantoms in, report out, on the embedded models alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import typer

from manifests.ingest import IngestOptions, ingest
from manifests.layout import Workdir
from pipeline.config import load_config
from pipeline.logs import duration
from pipeline.phantoms import make_phantoms
from pipeline.runner import RunOptions
from pipeline.running import do_run
from pipeline.workspace import Workspace

DATASET = "phantoms"
IMAGES_PER_CLASS = {"train": 24, "test": 16}
OVERRIDES = ('masks.compare=["supplied"]', "study.seeds=[0, 1, 2]")


def run_demo(workdir: Path, seed: int, config: Path | None = None, overrides: Sequence[str] = ()) -> int:
    """Make the phantoms, ingest them, run every stage, print the table and the report's path.

    Parameters
    ----------
    workdir : Path
        Work folder; the phantoms are written into it, below `source/`.
    seed : int
        Seed of the phantoms.
    config : Path, optional
        TOML file, such as a site's with its `[cluster]`.
    overrides : Sequence[str]
        `section.key=value`; win over the demo's own, and those over the file.

    Returns
    -------
    int
        Exit code of the run.
    """
    started = time.monotonic()
    folder = workdir.resolve() / "source" / f"seed-{seed}"
    make_phantoms(folder, IMAGES_PER_CLASS, seed)
    typer.echo(f"Phantoms: three classes, {sum(IMAGES_PER_CLASS.values())} images each, with ground-truth masks.")
    paths = Workdir(workdir.resolve()).dataset(f"{DATASET}-{seed}")
    ingest(paths, folder, IngestOptions(dataset=paths.name, labels=folder / "labels.csv", chunk_items=20))
    workspace = Workspace(paths, load_config(config, (*OVERRIDES, *overrides)))
    code = do_run(workspace, RunOptions(stage="all"), as_json=False)
    typer.echo(f"Everything in {duration(time.monotonic() - started)}.")
    return code
