"""Whether this machine and this work folder can run the pipeline: one line a check."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import PipelineError
from manifests.runs import PACKAGES, installed_versions
from pipeline.config import RunConfig
from pipeline.gpus import visible_gpus
from stages.models.weights import WeightsFolder

MIN_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    ok: bool
    detail: str


def examine(workdir: Path, config: RunConfig) -> Iterator[Check]:
    """Yield one check after the other; none changes anything that stays.

    Parameters
    ----------
    workdir : Path
        The work folder; need not exist yet.
    config : RunConfig
        Decides which models' weights are looked for.
    """
    yield Check("python", sys.version_info >= (3, 11), sys.version.split()[0])
    versions = installed_versions()
    for package in PACKAGES:
        yield Check(package, package in versions, versions.get(package, "not installed; run: make setup"))
    yield Check(
        "devices", ok=True, detail=f"{len(visible_gpus())} CUDA devices, {len(os.sched_getaffinity(0))} CPU cores"
    )
    for model in sorted({config.proposals.model, config.embeddings.model}):
        yield _attempt(f"weights {model}", lambda model=model: _weights(model))  # type: ignore[misc]
    yield _attempt("free space", lambda: _free_space(workdir))
    yield _attempt("rename semantics", lambda: _rename(workdir))


def _attempt(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, ok=True, detail=check())
    except (PipelineError, OSError) as error:
        return Check(name, ok=False, detail=str(error))


def _weights(model: str) -> str:
    WeightsFolder().check(model)
    digests = WeightsFolder().digests(model)
    return ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(digests.items())) or "no weights needed"


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free_space(workdir: Path) -> str:
    free = shutil.disk_usage(_existing(workdir)).free
    if free < MIN_FREE_BYTES:
        raise OSError(f"{free / 2**30:.1f} GiB free; stage one needs some 0.1 MiB an image, and 2 GiB to be safe")
    return f"{free / 2**30:.1f} GiB free"


def _rename(workdir: Path) -> str:
    """A rename onto a folder that is not empty must fail: the commit protocol rests on it."""
    probe = _existing(workdir) / f".doctor-{uuid.uuid4().hex}"
    try:
        for name in ("first", "second"):
            (probe / name).mkdir(parents=True)
            (probe / name / "file").write_text(name)
        (probe / "first").rename(probe / "target")
        try:
            (probe / "second").rename(probe / "target")
        except OSError:
            return "at most one rename wins"
        raise OSError("a folder rename replaced another: this file system cannot hold a store")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
