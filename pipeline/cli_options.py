"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WorkdirOption = Annotated[Path, typer.Option("--workdir", help="Work folder.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Data set; needed where there are several.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file; docs/configuration.md lists its keys.")]
PresetOption = Annotated[str | None, typer.Option("--preset", help="embedded or paper.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Say more on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SourceOption = Annotated[Path | None, typer.Option("--source", help="Where the source folder is mounted here.")]
ClusterOption = Annotated[str | None, typer.Option("--cluster", help="auto, inline, local, slurm, pbs, lsf or sge.")]
DEFAULT_WORKDIR = Path("workdir")
