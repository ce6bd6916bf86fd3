"""Whether what is on disk is still what was committed, and what killed processes left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests import disk
from manifests.disk import place
from manifests.errors import DamagedError, StoreError
from manifests.fingerprint import digest_file
from manifests.layout import UnitPaths
from manifests.records import REPAIR, Commit
from manifests.store import StageStore, group_files, metadata_problems
from manifests.types import ArraySpec
from manifests.units import committed_units, listing, read_commit

STORE_FOLDERS = ("commits", "data.zarr", "retired", "staging")
"""Folders of a store: `gc` sees to staging, the others hold too many files to look through."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One file that is not what was committed."""

    unit: str
    """Name of the unit; empty for the store's own metadata."""
    path: str
    """Path relative to the store's folder."""
    problem: str
    """What it is: `missing`, `of 12 bytes instead of 34`, or `not what was committed`."""


def verify(root: Path) -> list[Damage]:
    """Compare every file of a map store or a cell stage with its commit record.

    Parameters
    ----------
    root : Path
        Folder of the store or stage; every shard and artifact in it is read once.

    Returns
    -------
    list[Damage]
        Nothing if all is well; damaged units can be retired and computed anew.
    """
    units = committed_units(root)
    damages = [Damage("", path, problem) for path, problem in metadata_problems(root)] if _is_map(root, units) else []
    arrays = () if damages or not UnitPaths(root).data.exists() else tuple(s.name for s in StageStore.load(root).specs)
    for unit in units:
        damages += _unit_damages(root, unit, arrays)
    return damages


def _is_map(root: Path, units: tuple[str, ...]) -> bool:
    """Whether a store with data.zarr belongs here: it is there, or a commit speaks of it."""
    if UnitPaths(root).data.exists():
        return True
    for unit in units:
        try:
            commit = read_commit(root, unit)
        except StoreError:
            continue
        return commit is not None and any(path.startswith("data.zarr/") for path in commit.digests)
    return False


def _unit_damages(root: Path, unit: str, arrays: tuple[str, ...]) -> list[Damage]:
    """Check one unit, and again if it was computed anew meanwhile."""
    while True:
        try:
            commit = read_commit(root, unit)
            if commit is None:
                return []
            damages = _file_damages(root, commit, arrays)
            again = read_commit(root, unit) if damages else commit
        except StoreError as error:
            return [Damage(unit, f"commits/{unit}/commit.json", error.what)]
        if again is not None and again.attempt == commit.attempt:
            return damages


def _file_damages(root: Path, commit: Commit, arrays: tuple[str, ...]) -> list[Damage]:
    folder = UnitPaths(root).commit(commit.unit).relative_to(root)
    recorded = {path.split("/")[1] for path in commit.digests if path.startswith("data.zarr/")}
    damages = [Damage(commit.unit, f"data.zarr/{a}", "not in the commit") for a in arrays if a not in recorded]
    for name, digest in commit.digests.items():
        path = Path(name) if name.startswith("data.zarr/") else folder / name
        problem = _problem(root / path, commit.sizes.get(name, -1), digest)
        if problem:
            damages.append(Damage(commit.unit, path.as_posix(), problem))
    return damages


def _problem(path: Path, size: int, digest: str) -> str:
    problem = _look_at(path, size, digest)
    if problem == "missing":
        # Opening the folder makes an NFS client look for new entries.
        listing(path.parent)
        problem = _look_at(path, size, digest)
    return problem


def _look_at(path: Path, size: int, digest: str) -> str:
    try:
        found = path.stat().st_size
        if not path.is_file():
            return "missing"
        if found != size:
            return f"of {found} bytes instead of {size}"
        return "" if digest_file(path) == digest else "not what was committed"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        if error.errno not in disk.ADVICE:
            raise
        return f"not readable ({os.strerror(error.errno)})"


def restore_metadata(
    root: Path, specs: Sequence[ArraySpec], n_items: int, chunk_items: int, attributes: Mapping[str, Any]
) -> list[str]:
    """Write a store's missing or damaged metadata files anew, so that its shards need not be computed again.

    Parameters
    ----------
    root : Path
        Folder of the store.
    specs : Sequence[ArraySpec]
        Arrays that the stage writes.
    n_items : int
        Rows of the drop, N.
    chunk_items : int
        Rows of a unit, B.
    attributes : Mapping[str, Any]
        JSON values that the stage stores with its arrays.

    Returns
    -------
    list[str]
        Paths of the files that were written, relative to `root`.

    Raises
    ------
    StoreError
        If another version wrote the store, an intact file says other than the arguments, or the disk fails.
    """
    data = UnitPaths(root).data
    files = group_files(specs, n_items, chunk_items, attributes)
    problems = dict(metadata_problems(root))
    if foreign := [problem for problem in problems.values() if not problem.startswith(("missing", "damaged"))]:
        raise StoreError(f"{disk.place(root)} is {foreign[0]}.", "Use the version that wrote it.")
    # Without the group's file no digest tells whether an array's file is intact; then it is if it can be read.
    no_digests = "data.zarr/zarr.json" in problems
    written = []
    with disk.disk_errors(f"write {disk.place(data)}", data):
        for name, text in files.items():
            file = data / name
            if file.is_file() and file.read_bytes() == text:
                continue
            if f"data.zarr/{name}" not in problems and not (no_digests and not _is_json(file)):
                raise StoreError(
                    f"{disk.place(file)} is intact, but not as these settings, or this version of Zarr, write it.",
                    "Use the settings and the version that made the store.",
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            disk.write_atomic(file, text.decode("ascii"))
            written.append(f"data.zarr/{name}")
    return written


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def gc(root: Path, older_than_s: float, *, dry_run: bool) -> list[Path]:
    """Delete what killed processes left in staging/.

    Parameters
    ----------
    root : Path
        Folder of a map store or a cell stage.
    older_than_s : float
        Keep everything with a file younger than this, in seconds: an attempt may still be at work there.
    dry_run : bool
        Delete nothing.

    Returns
    -------
    list[Path]
        Folders that were, or would be, deleted.

    Raises
    ------
    StoreError
        If the disk is read-only, forbidden or failing.
    """
    staging = UnitPaths(root).staging
    old = [folder for folder in _folders(staging) if time.time() - _last_change(folder) > older_than_s]
    with disk.disk_errors(f"delete in {disk.place(staging)}", staging):
        for folder in [] if dry_run else old:
            # Renamed first: an attempt that wakes up cannot commit a folder that is half deleted.
            doomed = staging / f"gc-{uuid.uuid4().hex}"
            # What is not found was committed, or another gc deletes it.
            with suppress(FileNotFoundError):
                folder.rename(doomed)
                disk.checkpoint("doomed")
                shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
    return old


def gc_partials(folder: Path, older_than_s: float, *, dry_run: bool) -> list[Path]:
    """Delete half-written files, and drops under way, that killed processes left beside what they were to replace.

    Parameters
    ----------
    folder : Path
        Everything below is looked at, but for the stores' own folders.
    older_than_s : float
        Keep what is younger, in seconds: it may still be being written.
    dry_run : bool
        Delete nothing.

    Returns
    -------
    list[Path]
        Files that were, or would be, deleted.

    Raises
    ------
    StoreError
        If the disk is read-only, forbidden or failing.
    """
    found: list[Path] = []
    with disk.disk_errors(f"delete below {disk.place(folder)}", folder):
        for here, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if name not in STORE_FOLDERS]
            partials = [Path(here, name) for name in files if name.startswith(".") and name.endswith(disk.PARTIAL)]
            partials += [Path(here, name) for name in folders if name.startswith(disk.INCOMING)]
            found += [file for file in partials if time.time() - _last_change(file) > older_than_s]
        for path in [] if dry_run else found:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return sorted(found)


def _folders(staging: Path) -> list[Path]:
    return sorted(staging.iterdir()) if staging.is_dir() else []


def _last_change(folder: Path) -> float:
    """Youngest modification time of a folder and all below it, in seconds since 1970; now if something vanishes."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()


def checked_artifacts(root: Path, unit: str) -> Path:
    """Folder of a committed cell, after its artifacts have been compared with the commit record.

    Parameters
    ----------
    root : Path
        Folder of the cell stage.
    unit : str
        Name of the cell.

    Raises
    ------
    StoreError
        If the cell is not committed.
    DamagedError
        If an artifact is missing or not what was committed.
    """
    for damage in _unit_damages(root, unit, ()):
        raise DamagedError(f"{place(root)}/{damage.path} is {damage.problem}.", REPAIR)
    if read_commit(root, unit) is None:
        raise StoreError(f"{place(root)}/{unit} is not committed.", "Run: pipeline run")
    return UnitPaths(root).commit(unit)
