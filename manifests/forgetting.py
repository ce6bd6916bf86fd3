"""What is left of withdrawn images in stores, cells, reports and thumbnails, and its removal."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests import disk
from manifests.drops import LOOKS_FILE, Drop, load_looks
from manifests.errors import DamagedError, StoreError
from manifests.layout import EXPORT_RECORD, DatasetPaths, UnitPaths
from manifests.records import Commit
from manifests.store import StageStore
from manifests.types import Chunk, ImageRow, Status
from manifests.units import committed_units, listing, read_commit, retire

WITHDRAWALS = "withdrawals"
"""Key of a cell's commit record, and of a report's provenance, that lists the withdrawals which it heeds;
so does the record of an export."""

DOOMED = ".gc-"
REPORTS = ("reports", "calibrations")
"""Where folders lie whose provenance.json says which withdrawals they heed."""
HALF_DELETED = tuple(
    f"{above}/{DOOMED}*" for above in (*REPORTS, "exports", "stages/*/*", "stages/*/*/commits", "stages/*/*/retired")
)
"""Where what was being deleted can lie after a kill, below the data set's folder."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Something on disk that holds, or was computed from, withdrawn images."""

    path: str
    """Path below the data set's folder."""
    what: str
    remove: Callable[[], None]


def find_traces(
    paths: DatasetPaths,
    drops: Sequence[tuple[Drop, Sequence[ImageRow]]],
    withdrawn: Collection[str],
    withdrawals: Collection[str],
) -> Iterator[Trace]:
    """Find everything that `gc` removes because of withdrawals, under every configuration.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    drops : Sequence[tuple[Drop, Sequence[ImageRow]]]
        All drops with their rows.
    withdrawn : Collection[str]
        image_ids that are withdrawn.
    withdrawals : Collection[str]
        Ids of all withdrawals.

    Yields
    ------
    Trace
        Pixels of withdrawn images first, then results that were computed from them.

    Raises
    ------
    StoreError
        If a store cannot be read.
    """
    for folder in sorted(f for depth in HALF_DELETED for f in paths.root.glob(depth)):
        yield _folder(paths, folder, "half deleted when a process was killed")
    if not withdrawals:
        return
    for drop, rows in drops:
        gone = np.array([row.image_id in withdrawn for row in rows])
        if gone.any():
            yield from _in_looks(paths, drop, gone)
            for root in sorted(paths.root.glob(f"stages/*/*/{drop.drop_id}")):
                yield from _in_store(paths, root, drop, gone, withdrawn)
    for root in sorted(folder.parent for folder in paths.root.glob("stages/*/*/commits")):
        if _has_data(root):
            yield from _in_cells(paths, root, withdrawals)
    for folder in sorted(folder for above in REPORTS for folder in paths.root.glob(f"{above}/*")):
        if not folder.name.startswith(DOOMED) and not _heeds(_told(folder / "provenance.json"), withdrawals):
            yield _folder(paths, folder, "a report made before a withdrawal")
    for folder in sorted(file.parent for file in paths.root.glob(f"exports/*/{EXPORT_RECORD}")):
        if not folder.name.startswith(DOOMED) and not _heeds(_told(folder / EXPORT_RECORD), withdrawals):
            yield _folder(paths, folder, "an export made before a withdrawal")


def _in_looks(paths: DatasetPaths, drop: Drop, gone: NDArray[np.bool_]) -> Iterator[Trace]:
    looks, file = load_looks(paths, drop), paths.drop(drop.drop_id) / LOOKS_FILE
    if looks is not None and looks.seen[gone].any():

        def blank() -> None:
            disk.write_atomic(file, looks.without(gone).to_bytes())
            file.chmod(0o600)

        yield Trace(_name(paths, file), f"thumbnails of {int(looks.seen[gone].sum())} withdrawn images", blank)


def _in_store(
    paths: DatasetPaths,
    root: Path,
    drop: Drop,
    gone: NDArray[np.bool_],
    withdrawn: Collection[str],
) -> Iterator[Trace]:
    if gone.all():
        yield _folder(paths, root, "arrays of a withdrawn drop")
        return
    if not UnitPaths(root).data.is_dir():
        return
    store = StageStore.load(root)
    for chunk in drop.chunks():
        if gone[chunk.start : chunk.stop].any() and (shards := _shards_with(store, chunk, withdrawn)):
            what = f"shards with {int(gone[chunk.start : chunk.stop].sum())} withdrawn images"
            yield Trace(f"{_name(paths, root)}/{chunk.unit}", what, partial(_drop_shards, store, chunk, shards))


def _shards_with(store: StageStore, chunk: Chunk, withdrawn: Collection[str]) -> list[Path]:
    """Shards of a chunk that hold withdrawn images: all of them, unless an attempt without those images stands."""
    try:
        commit = read_commit(store.root, chunk.unit)
    except DamagedError:
        commit = None
    if commit is not None and not holds(commit, withdrawn):
        return []
    shards = [store.root / store.shard_path(spec.name, chunk) for spec in store.specs]
    return [shard for shard in shards if shard.exists()]


def holds(commit: Commit, withdrawn: Collection[str]) -> bool:
    """Whether a chunk was committed with a result for a withdrawn image."""
    return any(item.image_id in withdrawn and item.status != Status.FAILED for item in commit.outcomes())


def _drop_shards(store: StageStore, chunk: Chunk, shards: Sequence[Path]) -> None:
    """Make the chunk pending, then delete its shards: in this order a kill leaves a unit that is computed anew."""
    with suppress(DamagedError):
        retire(store.root, chunk.unit)
    with disk.disk_errors(f"delete in {disk.place(store.root)}", store.root):
        for shard in shards:
            disk.checkpoint("forgetting")
            shard.unlink(missing_ok=True)


def _in_cells(paths: DatasetPaths, root: Path, withdrawals: Collection[str]) -> Iterator[Trace]:
    for unit in committed_units(root):
        try:
            commit = read_commit(root, unit)
        except StoreError:
            commit = None
        if commit is None or not _heeds(commit.record, withdrawals):
            yield _folder(paths, UnitPaths(root).commit(unit), "a result computed before a withdrawal")
    for name in (name for name in listing(UnitPaths(root).retired) if not name.startswith(DOOMED)):
        yield _folder(paths, UnitPaths(root).retired / name, "a retired result, computed before a withdrawal")


def _has_data(root: Path) -> bool:
    """Whether a cell stage's results depend on images: its identity names the digest of their data."""
    try:
        return "data" in json.loads((root / "stage.json").read_bytes())["upstream"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return True


def _told(file: Path) -> Mapping[str, object]:
    """What a record of a report or an export says; nothing if it cannot be read."""
    try:
        found: Mapping[str, object] = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found


def _heeds(record: Mapping[str, object], withdrawals: Collection[str]) -> bool:
    heeded = record.get(WITHDRAWALS)
    return isinstance(heeded, list) and set(withdrawals) <= set(heeded)


def _folder(paths: DatasetPaths, folder: Path, what: str) -> Trace:
    def remove() -> None:
        # Renamed first, so that nobody reads, or commits, what is half deleted.
        doomed = folder.with_name(f"{DOOMED}{uuid.uuid4().hex}")
        with disk.disk_errors(f"delete {disk.place(folder)}", folder), suppress(FileNotFoundError):
            folder.rename(doomed)
            disk.checkpoint("doomed")
            shutil.rmtree(doomed)

    return Trace(_name(paths, folder), what, remove)


def _name(paths: DatasetPaths, path: Path) -> str:
    return path.relative_to(paths.root).as_posix()
