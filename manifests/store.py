"""The Zarr group of a map stage for one drop: made whole, checked whole, never appended to or resized."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from manifests import disk
from manifests.errors import StoreError
from manifests.fingerprint import canonical_json, digest_bytes, digest_json
from manifests.layout import UnitPaths
from manifests.shards import array_metadata, check_specs, shard_key
from manifests.types import ArraySpec, Chunk

__all__ = ["SCHEMA_VERSION", "StageStore", "group_files", "make_folders", "metadata_problems"]

SCHEMA = "medfocus.map-store"
SCHEMA_VERSION = 1
OWN = ("schema", "schema_version", "n_items", "chunk_items", "specs", "metadata_sha256", "attributes_sha256")
"""Group attributes that belong to the store; all others are the stage's."""
RESTORE = "Run: pipeline repair. If that does not help, move {folder} away and run again: it is computed anew."


@dataclass(frozen=True, slots=True)
class StageStore:
    """Arrays of one map stage for one drop, and the grid of its units."""

    root: Path
    """Folder with data.zarr, commits, staging and retired."""
    specs: tuple[ArraySpec, ...]
    n_items: int
    """Rows of the drop, N."""
    chunk_items: int
    """Rows of a unit, B; the last unit may have fewer."""
    attributes: Mapping[str, Any]
    """What the stage stored: fingerprint, drop, upstream, card and the like."""
    metadata: Mapping[str, bytes] = field(repr=False)
    """zarr.json of each array, as checked when the store was opened."""

    @classmethod
    def open(
        cls, root: Path, specs: Sequence[ArraySpec], n_items: int, chunk_items: int, attributes: Mapping[str, Any]
    ) -> StageStore:
        """Open a store; create it, with all metadata, if it is not there yet.

        Parameters
        ----------
        root : Path
            Folder of the store; created with its parents.
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
        StageStore
            The same for every process that opens it.

        Raises
        ------
        StoreError
            If what is stored was made from other arguments, is damaged, or cannot be written.
        ValueError
            If the arguments cannot make a store.
        """
        asked = _group_attributes(specs, n_items, chunk_items, attributes)
        with disk.disk_errors(f"read {disk.place(root)}", root):
            missing = not UnitPaths(root).data.exists()
        if missing:
            _create(root, group_files(specs, n_items, chunk_items, attributes))
        store = cls.load(root)
        stored = _group_attributes(store.specs, store.n_items, store.chunk_items, store.attributes)
        for key, theirs, ours in _differences(stored, asked):
            raise StoreError(
                f"{disk.place(root)} was made with {key} = {_shown(theirs)}, this run has {_shown(ours)}.",
                "Give the run what the store was made with, or another work folder: --workdir DIR",
            )
        return store

    @classmethod
    def load(cls, root: Path) -> StageStore:
        """Open a store as it is.

        Raises
        ------
        StoreError
            If there is none, it is damaged, or another version wrote it.
        """
        data = UnitPaths(root).data
        with disk.disk_errors(f"read {disk.place(root)}", root):
            for path, problem in metadata_problems(root):
                raise StoreError(f"{disk.place(root)}: {path} is {problem}.", RESTORE.format(folder=disk.place(root)))
            stored = json.loads((data / "zarr.json").read_bytes())["attributes"]
            specs = tuple(_spec(entry) for entry in stored["specs"])
            metadata = {spec.name: (data / spec.name / "zarr.json").read_bytes() for spec in specs}
        attributes = {key: value for key, value in stored.items() if key not in OWN}
        return cls(root, specs, stored["n_items"], stored["chunk_items"], attributes, metadata)

    def spec(self, name: str) -> ArraySpec:
        """Declaration of one array.

        Raises
        ------
        KeyError
            If the store has no such array.
        """
        for spec in self.specs:
            if spec.name == name:
                return spec
        raise KeyError(f"{disk.place(self.root)} has the arrays {[s.name for s in self.specs]}, not {name!r}")

    def shard_path(self, name: str, chunk: Chunk) -> Path:
        """Path of one unit's shard of one array, relative to the store's folder."""
        return Path("data.zarr", name, shard_key(self.spec(name), chunk.index))

    def check_chunk(self, chunk: Chunk) -> None:
        """Check that a chunk is one step of this drop's grid, because then it is one shard of each array.

        Raises
        ------
        ValueError
            If it is not.
        """
        if (drop := self.attributes.get("drop", chunk.drop)) != chunk.drop:
            raise ValueError(f"chunk {chunk.index} belongs to the drop {chunk.drop!r}, the store to {drop!r}")
        start = chunk.index * self.chunk_items
        stop = min(start + self.chunk_items, self.n_items)
        if chunk.index < 0 or start >= self.n_items or (chunk.start, chunk.stop) != (start, stop):
            raise ValueError(
                f"chunk {chunk.index} has rows {chunk.start}:{chunk.stop}, "
                f"the grid of {self.n_items} rows by {self.chunk_items} has {start}:{stop} there"
            )


def metadata_problems(root: Path) -> Iterator[tuple[str, str]]:
    """Find what is wrong with a store's metadata files.

    Parameters
    ----------
    root : Path
        Folder of the store.

    Returns
    -------
    Iterator[tuple[str, str]]
        Path relative to the folder, and the problem as what the file "is".
    """
    data = UnitPaths(root).data
    path = "data.zarr/zarr.json"
    if (data / ".zgroup").exists():
        yield path, "of Zarr v2, which this version does not read"
        return
    try:
        attributes = json.loads((data / "zarr.json").read_bytes())["attributes"]
        version = (attributes["schema"], attributes["schema_version"])
        digest = attributes.pop("attributes_sha256", "none")
    except FileNotFoundError:
        yield path, "missing"
        return
    except OSError as error:
        yield path, _unreadable(error)
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        yield path, "damaged: it holds no attributes of a store"
        return
    if version != (SCHEMA, SCHEMA_VERSION):
        yield path, f"of schema {version[0]} {version[1]}; this version reads {SCHEMA} {SCHEMA_VERSION}"
        return
    if digest != digest_json(attributes):
        yield path, "damaged: its attributes do not match their digest"
        return
    for name, expected in attributes["metadata_sha256"].items():
        try:
            if digest_bytes((data / name / "zarr.json").read_bytes()) != expected:
                yield f"data.zarr/{name}/zarr.json", "damaged: it does not match its digest"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            yield f"data.zarr/{name}/zarr.json", "missing"
        except OSError as error:
            yield f"data.zarr/{name}/zarr.json", _unreadable(error)


def _unreadable(error: OSError) -> str:
    """What a file is that the disk does not give; anything but a failing disk is a bug and rises."""
    if error.errno not in disk.ADVICE:
        raise error
    return f"damaged: it cannot be read ({os.strerror(error.errno)})"


def group_files(
    specs: Sequence[ArraySpec], n_items: int, chunk_items: int, attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    """Write all metadata of a store; the same arguments give the same bytes.

    Parameters
    ----------
    specs : Sequence[ArraySpec]
        Arrays of the store.
    n_items : int
        Rows of the drop, N.
    chunk_items : int
        Rows of a unit, B.
    attributes : Mapping[str, Any]
        JSON values that the stage stores with its arrays.

    Returns
    -------
    dict[str, bytes]
        Contents by path inside data.zarr; the group's own file is the last.

    Raises
    ------
    ValueError
        If the arguments cannot make a store.
    """
    stored = _group_attributes(specs, n_items, chunk_items, attributes)
    arrays = array_metadata(specs, n_items, chunk_items)
    stored["metadata_sha256"] = {name: digest_bytes(text) for name, text in arrays.items()}
    stored["attributes_sha256"] = digest_json(stored)
    group = json.dumps({"attributes": stored, "zarr_format": 3, "node_type": "group"}, indent=1)
    return {**{f"{name}/zarr.json": text for name, text in arrays.items()}, "zarr.json": group.encode("ascii")}


def _create(root: Path, files: Mapping[str, bytes]) -> None:
    """Build the group aside and rename it into place; the loser of a race deletes his own."""
    paths = UnitPaths(root)
    aside = paths.staging / f"create-{uuid.uuid4().hex}"
    with disk.disk_errors(f"create {disk.place(root)}", root):
        try:
            make_folders(root)
            for name, text in files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                disk.write_synced(aside / name, text)
                disk.sync_folder((aside / name).parent)
            disk.checkpoint("created aside")
            _rename_unless_there(aside, paths.data)
            disk.sync_folder(root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def make_folders(root: Path) -> None:
    """Create commits, staging and retired below a map store or a cell stage."""
    paths = UnitPaths(root)
    missing = [folder for folder in (paths.commits, paths.staging, paths.retired) if not folder.is_dir()]
    for folder in missing:
        folder.mkdir(parents=True, exist_ok=True)
    if missing:
        disk.sync_folder(root)


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process was first, or an NFS server reports failure for a rename that it carried out.
        if not (target / "zarr.json").exists():
            raise


def _group_attributes(
    specs: Sequence[ArraySpec], n_items: int, chunk_items: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that a store is made from, as JSON values."""
    check_specs(specs)
    if n_items < 1 or chunk_items < 1:
        raise ValueError(f"a store needs rows and rows a unit, got n_items={n_items}, chunk_items={chunk_items}")
    if clash := sorted(set(attributes) & set(OWN)):
        raise ValueError(f"the attributes {clash} belong to the store")
    own = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "n_items": n_items,
        "chunk_items": chunk_items,
        "specs": [{**asdict(spec), "fill": repr(float(spec.fill))} for spec in specs],
    }
    return dict(json.loads(canonical_json({**own, **attributes})))


def _spec(stored: Mapping[str, Any]) -> ArraySpec:
    shape, dims = tuple(stored["item_shape"]), tuple(stored["item_dims"])
    return ArraySpec(**{**stored, "item_shape": shape, "item_dims": dims, "fill": float(stored["fill"])})


def _differences(stored: Any, asked: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk two JSON values and give the place, and both sides, of every difference."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for name in dict.fromkeys([*stored, *asked]):
            yield from _differences(stored.get(name), asked.get(name), f"{key}.{name}" if key else name)
    elif isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        for index, (theirs, ours) in enumerate(zip(stored, asked, strict=True)):
            yield from _differences(theirs, ours, f"{key}[{index}]")
    elif stored != asked:
        yield key, stored, asked


def _shown(value: Any, width: int = 200) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= width else f"{text[:width]}... (sha256 {digest_json(value)[:12]})"
