"""Units of a map store or a cell stage: which are committed, which are pending, and one that is to be computed anew.

A unit is committed while `commits/<unit>` exists. A map stage's shards are then moved into data.zarr by whoever looks
first; nothing here deletes a shard, and no path leads from one attempt to another's. See docs/store-format.md.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from manifests import disk
from manifests.errors import StoreError
from manifests.fingerprint import digest_json
from manifests.layout import UnitPaths
from manifests.records import Commit, load_record

UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]*")
"""What a unit's name looks like."""
SHARDS = re.compile(r"[0-9a-f]{32}\.zarr")
"""Name of the folder in a commit whose shards are not yet in data.zarr; it begins with the attempt id."""
TRIES = 100
"""Bound of loops that another process can make go round again, each time by committing or retiring the unit."""


def roll_forward(root: Path, unit: str) -> None:
    """Move a commit's shards into data.zarr, as far as no other process has, `status` last.

    Raises
    ------
    StoreError
        If data.zarr lacks the array's folder, or the disk is full, read-only, forbidden or failing.
    """
    paths = UnitPaths(root)
    commit = paths.commit(unit)
    with disk.disk_errors(f"complete {disk.place(root)}/{unit}", root):
        for name in listing(commit):
            if SHARDS.fullmatch(name):
                _move_shards(commit / name, paths.data)


def _move_shards(source: Path, data: Path) -> None:
    # The attempt id is part of the source's path: a process that slept through a retirement finds nothing to move.
    arrays = sorted(listing(source), key=lambda name: (name == "status", name))
    for array in arrays:
        for shard in listing(source / array):
            _move(source / array / shard, data / array / shard)
            disk.checkpoint("rolled")
    for array in arrays:
        with suppress(FileNotFoundError):
            disk.sync_folder(data / array)
    disk.checkpoint("settled")
    # Only empty folders go, so that no order of events deletes a shard.
    for folder in (*(source / array for array in arrays), source):
        disk.remove_if_empty(folder)
        disk.checkpoint("emptied")


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        # Another process moved it, or the commit was retired; unless it is the target's folder that is missing.
        if source.exists() and not target.parent.is_dir():
            raise StoreError(
                f"{disk.place(target)} has no folder to go to: data.zarr is damaged.", "Run: pipeline repair"
            ) from None


def listing(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if it is gone or is a file.

    Raises
    ------
    StoreError
        If the folder is forbidden or the disk fails.
    """
    with disk.disk_errors(f"list {disk.place(folder)}", folder):
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def read_commit(root: Path, unit: str) -> Commit | None:
    """Read a unit's commit record and see to it that its shards are in place; None if it is not committed.

    Raises
    ------
    StoreError
        If the record is damaged or shards cannot be moved.
    """
    commit = load_record(root, unit)
    if commit is not None:
        roll_forward(root, unit)
    return commit


def committed_units(root: Path) -> tuple[str, ...]:
    """Names of all committed units of a map store or a cell stage, sorted."""
    return tuple(name for name in listing(UnitPaths(root).commits) if UNIT.fullmatch(name))


def pending(root: Path, units: Sequence[str]) -> dict[str, str]:
    """Find the units that have to be computed, and complete commits that a killed process left halfway.

    Parameters
    ----------
    root : Path
        Folder of a map store or a cell stage, which need not exist yet.
    units : Sequence[str]
        Names of the units that are wanted.

    Returns
    -------
    dict[str, str]
        Reason by unit, in the order given: `new`, or `retired` if it was committed once.
    """
    committed = set(committed_units(root))
    retired = {name.rpartition("-")[0] for name in listing(UnitPaths(root).retired)}
    for unit in units:
        if unit in committed:
            roll_forward(root, unit)
    return {unit: "retired" if unit in retired else "new" for unit in units if unit not in committed}


def content_digest(root: Path, units: Sequence[str]) -> str:
    """Digest of what units hold, whoever computed it and when.

    Parameters
    ----------
    root : Path
        Folder of a map store or a cell stage.
    units : Sequence[str]
        Names of units; one that is not committed counts as such.

    Returns
    -------
    str
        64 hex digits.
    """
    return digest_of({unit: load_record(root, unit) for unit in units})


def digest_of(commits: Mapping[str, Commit | None]) -> str:
    """`content_digest` of units whose records have been read, by name."""
    return digest_json({unit: commit.digests if commit else None for unit, commit in commits.items()})


def retire(root: Path, unit: str, attempt: str | None = None) -> bool:
    """Make a committed unit pending again; its record stays in retired/.

    Parameters
    ----------
    root : Path
        Folder of a map store or a cell stage.
    unit : str
        Name of the unit.
    attempt : str, optional
        Retire only this attempt, so that what another process has just computed anew stays.

    Returns
    -------
    bool
        True if this call retired it; False if it was not committed, or by another attempt.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    paths = UnitPaths(root)
    # All shards leave the commit before it loses its name, so that no process can move one of them later.
    roll_forward(root, unit)
    if attempt is not None:
        standing = load_record(root, unit)
        if standing is None or standing.attempt != attempt:
            return False
    target = paths.retired / f"{unit}-{uuid.uuid4().hex}"
    disk.checkpoint("retiring")
    with disk.disk_errors(f"retire {disk.place(root)}/{unit}", root):
        try:
            paths.commit(unit).rename(target)
        except FileNotFoundError:
            return target.exists()  # True if an NFS server carried the rename out and then reported failure.
        disk.sync_folder(paths.commits)
        disk.sync_folder(paths.retired)
    disk.checkpoint("retired")
    return True
