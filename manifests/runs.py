"""What one run was: its record, its events and the facts of its environment, without any path or host name."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from manifests import disk
from manifests.errors import StoreError
from manifests.events import EventLog
from manifests.fingerprint import canonical_json
from manifests.records import now

__all__ = ["EventLog", "RunRecord", "finish_run", "load_run", "new_run_id", "start_run"]

RECORD_VERSION = 1
RUNNING = "running"
PACKAGES = (
    "medfocus",
    "torch",
    "torchvision",
    "sam2",
    "open_clip_torch",
    "timm",
    "dask",
    "distributed",
    "zarr",
    "numcodecs",
    "numpy",
    "scikit-learn",
    "pillow",
    "pydicom",
    "nibabel",
)
"""Distributions whose versions can change results."""
SLURM = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT")
PATH_ARGUMENT = re.compile(r"(?:^|(?<==))(?!\d+/\d+$)(?:~.*|[^=]*[/\\].*|\.\.?$)")
"""The part of an argument that is a path; `3/16` of `--part` is none."""
HIDDEN = "<path>"
TEXT_PATH = re.compile(r"""(?P<quote>['"])[^'"]*[/\\][^'"]*(?P=quote)|(?<![\w.>])[/~][^\s'"]*""")
"""A path inside a sentence: anything in quotes that has a separator, or a word that begins like an absolute path."""


class RunRecord(BaseModel):
    """One run of the pipeline, as run.json keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = RECORD_VERSION
    run_id: str
    argv: tuple[str, ...]
    """Command line with paths hidden, because folder names may name patients."""
    config: dict[str, Any]
    """Configuration with absolute paths hidden."""
    git: str | None
    """Commit of the program's own working copy; None if it is not run from one."""
    versions: dict[str, str]
    """Versions of the installed packages that can change results."""
    python: str
    platform: str
    """Operating system and processor type."""
    gpu: str | None = None
    """GPUs that computed units; None if none did, or while it runs."""
    slurm: dict[str, str] = {}
    """Ids of the Slurm job, if it is one."""
    started: str
    """UTC time in ISO form."""
    finished: str | None = None
    outcome: str = RUNNING
    exit_code: int | None = None
    counts: dict[str, Any] = {}


def new_run_id() -> str:
    """Name of a new run: UTC time to the second and 4 hex digits, so that names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def start_run(folder: Path, run_id: str, argv: Sequence[str], config: Mapping[str, Any]) -> RunRecord:
    """Write the record of a run that begins.

    Parameters
    ----------
    folder : Path
        Folder of the run; created.
    run_id : str
        From `new_run_id`.
    argv : Sequence[str]
        Command line.
    config : Mapping[str, Any]
        Configuration as JSON values.

    Returns
    -------
    RunRecord
        With the outcome `running`, which stays if the process is killed.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    record = RunRecord(
        run_id=run_id,
        argv=tuple(hide_paths(argument) for argument in argv),
        config=_hide_absolute(json.loads(canonical_json(config))),
        git=git_commit(),
        versions=installed_versions(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        slurm={name: os.environ[name] for name in SLURM if name in os.environ},
        started=now(),
    )
    with disk.disk_errors(f"write {disk.place(folder)}", folder):
        folder.mkdir(parents=True, exist_ok=True)
    _write(folder, record)
    return record


def finish_run(folder: Path, record: RunRecord, outcome: str, exit_code: int, counts: Mapping[str, Any]) -> RunRecord:
    """Replace the record of a run by one that says how it ended.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    record : RunRecord
        From `start_run`.
    outcome : str
        One word or the name of a signal or error.
    exit_code : int
        What the process returns.
    counts : Mapping[str, Any]
        What was done, as JSON values.

    Returns
    -------
    RunRecord
        The new record.

    Raises
    ------
    StoreError
        If it cannot be written; the old record stands.
    """
    ending = {"finished": now(), "outcome": outcome, "exit_code": exit_code, "counts": dict(counts)}
    ended = record.model_copy(update=ending)
    _write(folder, ended)
    return ended


def _write(folder: Path, record: RunRecord) -> None:
    fields = json.loads(canonical_json(record.model_dump(mode="json")))
    disk.write_atomic(folder / "run.json", json.dumps(fields, indent=1) + "\n")


def load_run(folder: Path) -> RunRecord:
    """Read a run's record.

    Raises
    ------
    StoreError
        If it is missing or damaged.
    """
    file = folder / "run.json"
    try:
        return RunRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{disk.place(file)} does not exist.", "Runs: the folder names in runs/.") from error
    except ValidationError as error:
        raise StoreError(
            f"{disk.place(file)} is damaged: {error.errors()[0]['msg']}.", "Results do not need it."
        ) from error


def hide_paths(argument: str) -> str:
    """Replace what is a path in a command-line argument (`--workdir=/a/b`, `images/`) by a placeholder."""
    return PATH_ARGUMENT.sub(HIDDEN, argument)


def hide_text_paths(text: str) -> str:
    """Replace the paths in a message, such as that of an OSError, by a placeholder."""
    return TEXT_PATH.sub(HIDDEN, text)


def _hide_absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hide_absolute(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hide_absolute(item) for item in value]
    return HIDDEN if isinstance(value, str) and value.startswith(("/", "~")) else value


def git_commit() -> str | None:
    """Commit of the working copy that this package lies in, with `-dirty` if files differ; None if there is none."""
    top = Path(__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages in `PACKAGES`, without importing any."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
