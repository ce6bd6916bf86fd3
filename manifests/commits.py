"""Publish by rename: an attempt is written aside and becomes true by one rename that at most one attempt can win.

See docs/store-format.md. What else concerns commits is offered here too: `units` and `rows` hold it.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from manifests import disk
from manifests.errors import StoreError
from manifests.fingerprint import digest_bytes, digest_file
from manifests.layout import UnitPaths
from manifests.records import Commit, load_record, now
from manifests.rows import read_rows
from manifests.shards import encode_shard
from manifests.store import StageStore, make_folders
from manifests.types import Chunk, UnitResult, expect_array
from manifests.units import (
    TRIES,
    UNIT,
    committed_units,
    content_digest,
    digest_of,
    pending,
    read_commit,
    retire,
    roll_forward,
)

__all__ = [
    "Commit",
    "committed_units",
    "content_digest",
    "digest_of",
    "pending",
    "publish_cell",
    "publish_chunk",
    "read_commit",
    "read_rows",
    "retire",
]


def publish_chunk(store: StageStore, chunk: Chunk, result: UnitResult, record: Mapping[str, Any] | None = None) -> bool:
    """Commit what a map stage returned for one chunk.

    Parameters
    ----------
    store : StageStore
        The open store.
    chunk : Chunk
        One step of its grid.
    result : UnitResult
        One array for every spec and one outcome for every row.
    record : Mapping[str, Any], optional
        JSON values to keep with the commit.

    Returns
    -------
    bool
        True if this attempt won; False if the chunk was committed already or another attempt was first.

    Raises
    ------
    ValueError
        If the result does not fit the store.
    StoreError
        If the disk is full, read-only, forbidden or failing; then nothing is committed.
    """
    check_result(store, chunk, result)
    if read_commit(store.root, chunk.unit) is not None:
        return False
    with _staging(store.root, chunk.unit) as (attempt, folder):
        shards = folder / f"{attempt}.zarr"
        shards.mkdir()
        digests, sizes = {}, {}
        for spec in store.specs:
            rows = slice(chunk.start, chunk.stop)
            data = encode_shard(spec, store.metadata[spec.name], chunk.index, rows, result.arrays[spec.name])
            path = store.shard_path(spec.name, chunk)
            (shards / spec.name).mkdir()
            disk.write_synced(shards / spec.name / path.name, data)
            disk.sync_folder(shards / spec.name)
            digests[path.as_posix()], sizes[path.as_posix()] = digest_bytes(data), len(data)
            disk.checkpoint("shard")
        disk.sync_folder(shards)
        commit = Commit(
            unit=chunk.unit,
            attempt=attempt,
            digests=digests,
            sizes=sizes,
            items=result.items,
            timings=dict(result.timings),
            created=now(),
            record=dict(record or {}),
        )
        return _commit(store.root, folder, commit)


def publish_cell(
    root: Path, unit: str, fill: Callable[[Path], Mapping[str, Any]], record: Mapping[str, Any] | None = None
) -> bool:
    """Let a cell write its artifacts aside, then commit them.

    Parameters
    ----------
    root : Path
        Folder of the cell stage.
    unit : str
        Name of the cell's unit.
    fill : Callable[[Path], Mapping[str, Any]]
        Writes at least one file into the folder it is given and returns metrics (JSON values); not called if the unit
        is committed already.
    record : Mapping[str, Any], optional
        JSON values to keep with the commit.

    Returns
    -------
    bool
        True if this attempt won; False if the unit was committed already or another attempt was first.

    Raises
    ------
    ValueError
        If `fill` writes nothing, a link, or a file named commit.json, or returns NaN or infinity.
    StoreError
        If the disk is full, read-only, forbidden or failing; then nothing is committed.
    """
    if read_commit(root, unit) is not None:
        return False
    with _staging(root, unit) as (attempt, folder):
        metrics = dict(fill(folder))
        disk.checkpoint("filled")
        files = _artifacts(folder)
        for path in files:
            disk.sync_file(path)
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            disk.sync_folder(path)
        names = {path: path.relative_to(folder).as_posix() for path in files}
        commit = Commit(
            unit=unit,
            attempt=attempt,
            digests={name: digest_file(path) for path, name in names.items()},
            sizes={name: path.stat().st_size for path, name in names.items()},
            metrics=metrics,
            created=now(),
            record=dict(record or {}),
        )
        return _commit(root, folder, commit)


def check_result(store: StageStore, chunk: Chunk, result: UnitResult) -> None:
    """Check what a map stage returned.

    Raises
    ------
    ValueError
        If arrays are missing, unknown or of another shape or dtype; if outcomes are not one a row in order; or if the
        `status` array says other than the outcomes.
    """
    store.check_chunk(chunk)
    names = [spec.name for spec in store.specs]
    if set(names) != set(result.arrays):
        raise ValueError(f"chunk {chunk.unit}: expected the arrays {sorted(names)}, got {sorted(result.arrays)}")
    for spec in store.specs:
        expect_array(spec.name, result.arrays[spec.name], (len(chunk), *spec.item_shape), spec.dtype)
    rows = [item.row for item in result.items]
    if rows != list(range(chunk.start, chunk.stop)):
        raise ValueError(f"chunk {chunk.unit}: expected outcomes of rows {chunk.start}:{chunk.stop}, got {rows}")
    if "status" in names:
        stored, told = result.arrays["status"], np.array([item.status for item in result.items])
        if differing := np.flatnonzero(stored != told).tolist():
            raise ValueError(f"chunk {chunk.unit}: array `status` and outcomes differ at rows {differing} of the chunk")


@contextmanager
def _staging(root: Path, unit: str) -> Iterator[tuple[str, Path]]:
    """Give a new attempt id and its empty folder, which is gone afterwards: renamed, or deleted."""
    if not UNIT.fullmatch(unit):
        raise ValueError(f"{unit!r} cannot be the name of a unit")
    attempt = uuid.uuid4().hex
    folder = UnitPaths(root).staging / f"{unit}-{attempt}"
    with disk.disk_errors(f"write {disk.place(root)}/{unit}", root):
        try:
            make_folders(root)
            folder.mkdir()
            yield attempt, folder
        except FileNotFoundError as error:
            if folder.exists():
                raise
            raise StoreError(
                f"The staging folder of {disk.place(root)}/{unit} is gone.",
                "Run again, and let pipeline gc delete only what is older than the longest unit takes.",
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _artifacts(folder: Path) -> list[Path]:
    """All files below a filled folder, sorted."""
    found = sorted(folder.rglob("*"))
    if links := [p.name for p in found if p.is_symlink()]:
        raise ValueError(f"artifacts must be files, got the link {links[0]!r}")
    files = [p for p in found if p.is_file()]
    if not files or folder / "commit.json" in files:
        raise ValueError("a cell writes at least one artifact, and none of them is commit.json")
    return files


def _commit(root: Path, folder: Path, commit: Commit) -> bool:
    """Make a complete staging folder true, if no other attempt is."""
    disk.write_synced(folder / "commit.json", commit.to_bytes())
    disk.sync_folder(folder)
    disk.checkpoint("staged")
    if not _won(root, folder, commit):
        return False
    disk.checkpoint("renamed")
    disk.sync_folder(UnitPaths(root).commits)
    disk.checkpoint("committed")
    roll_forward(root, commit.unit)
    return True


def _won(root: Path, folder: Path, commit: Commit) -> bool:
    """Rename the staging folder to the commit's name, which fails while another commit has it."""
    for _ in range(TRIES):
        try:
            folder.rename(UnitPaths(root).commit(commit.unit))
        except OSError as error:
            # NFS may report failure for a rename that it carried out, so the attempt id decides.
            standing = load_record(root, commit.unit)
            if standing is not None:
                return standing.attempt == commit.attempt
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return True
    raise StoreError(f"{disk.place(root)}/{commit.unit} is committed and retired without end.", "Stop other runs.")
