"""Drops: immutable lists of images that arrived together, each published by one rename."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.audit import Audit
from manifests.disk import INCOMING, disk_errors, make_private, sync_folder, write_atomic, write_synced
from manifests.errors import InventoryError
from manifests.fingerprint import digest_bytes, digest_file, digest_json
from manifests.inventory_file import format_rows, parse_rows
from manifests.layout import DatasetPaths
from manifests.looks import Looks
from manifests.reading import Reading
from manifests.twins import Twin
from manifests.types import Chunk, ImageRow

DROP_FILE, INVENTORY_FILE, AUDIT_FILE, LOOKS_FILE = "drop.json", "inventory.csv", "audit.json", "looks.npz"
RESTORE = "Restore the folder drops/ from your backup."


class Drop(BaseModel):
    """One drop: what drop.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2, 3, 4] = 4
    """2 since inventory.csv has mask_sha256, 3 since drop.json has audit_sha256 and its own digest, 4 since
    inventory.csv has frame."""
    drop_id: str
    dataset: str
    source_root: str
    """Absolute path of the source folder at ingest; never leaves drops/."""
    n_items: int = Field(ge=1)
    chunk_items: int = Field(ge=1)
    """Rows of a chunk; the last chunk may be shorter."""
    classes: tuple[str, ...]
    """Labels seen so far, earlier drops included: those keep their index, new ones follow in sorted order."""
    inventory_sha256: str
    """Digest of inventory.csv."""
    audit_sha256: str = ""
    """Digest of audit.json, whose twins decide which test images scores flag; empty in drops of schema 2."""
    created: str
    """UTC time, ISO 8601."""
    previous: tuple[str, ...] = ()
    """Ids of all earlier drops in order of arrival."""
    salt_id: str = ""
    """Which salt made the group ids; empty if the drop has no groups."""
    reading: Reading = Reading()
    """How DICOM and NIfTI files became pictures."""

    def chunks(self) -> tuple[Chunk, ...]:
        """The chunk grid: every row in exactly one chunk."""
        starts = range(0, self.n_items, self.chunk_items)
        return tuple(
            Chunk(self.drop_id, index, start, min(start + self.chunk_items, self.n_items))
            for index, start in enumerate(starts)
        )


def write_drop(paths: DatasetPaths, drop: Drop, rows: Sequence[ImageRow], audit: Audit, looks: Looks) -> None:
    """Publish a drop by one directory rename; files are for the owner only.

    Raises
    ------
    InventoryError
        If a drop of this id exists, another one arrived since `drop` was made, or rows or audit are not its own.
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    inventory = format_rows(rows)
    if digest_bytes(inventory) != drop.inventory_sha256 or len(rows) != drop.n_items:
        raise InventoryError(f"The rows are not those of drop {drop.drop_id!r}.", "Make the drop of these rows.")
    if drop.audit_sha256 not in ("", audit_digest(audit)):
        raise InventoryError(f"The audit is not that of drop {drop.drop_id!r}.", "Make the drop of this audit.")
    if paths.drop(drop.drop_id).exists():
        raise _taken(drop.drop_id)
    if tuple(earlier.drop_id for earlier in load_drops(paths)) != drop.previous:
        raise InventoryError("Another drop arrived in the meantime.", "Ingest the source again.")
    make_private(paths.root)
    sync_folder(paths.root.parent)
    staging = make_private(make_private(paths.drops) / f"{INCOMING}{uuid.uuid4().hex}")
    contents = {
        DROP_FILE: _sealed(drop),
        INVENTORY_FILE: inventory,
        AUDIT_FILE: _json(audit),
        LOOKS_FILE: looks.to_bytes(),
    }
    try:
        with disk_errors(f"write drop {drop.drop_id}", paths.drops):
            for name, data in contents.items():
                write_synced(staging / name, data)
                (staging / name).chmod(0o600)
            sync_folder(staging)
            sync_folder(paths.root)
            _publish(staging, paths.drop(drop.drop_id))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def audit_digest(audit: Audit) -> str:
    """sha256 of an audit as audit.json."""
    return digest_bytes(_json(audit))


def load_drops(paths: DatasetPaths) -> tuple[Drop, ...]:
    """All drops in order of arrival; none if nothing was ingested.

    Raises
    ------
    InventoryError
        If a drop.json is damaged or of a newer version, or a drop of the chain is missing or was made beside another.
    """
    entries = sorted(paths.drops.iterdir()) if paths.drops.is_dir() else []
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    drops = sorted((_load_drop(folder) for folder in folders), key=lambda drop: len(drop.previous))
    for position, drop in enumerate(drops):
        expected = tuple(earlier.drop_id for earlier in drops[:position])
        if drop.previous != expected:
            raise InventoryError(
                f"Drop {drop.drop_id!r} follows {list(drop.previous)}, but the drops before it are {list(expected)}.",
                "A drop was removed: restore it. Or two were ingested at once: move the later one away, ingest again.",
            )
    return tuple(drops)


def load_rows(paths: DatasetPaths, drop: Drop) -> tuple[ImageRow, ...]:
    """Rows of one drop.

    Raises
    ------
    InventoryError
        If inventory.csv is missing or is not the one that was ingested.
    """
    file = paths.drop(drop.drop_id) / INVENTORY_FILE
    if not file.is_file() or digest_file(file) != drop.inventory_sha256:
        raise InventoryError(f"The inventory of drop {drop.drop_id!r} was altered or removed.", RESTORE)
    return parse_rows(file.read_bytes())


def load_audit(paths: DatasetPaths, drop: Drop) -> Audit:
    """What ingest found suspicious about one drop.

    Raises
    ------
    InventoryError
        If audit.json is missing or is not the one that was ingested.
    """
    file = paths.drop(drop.drop_id) / AUDIT_FILE
    altered = InventoryError(f"The audit of drop {drop.drop_id!r} was altered or removed.", RESTORE)
    try:
        data = file.read_bytes()
        if drop.audit_sha256 not in ("", digest_bytes(data)):
            raise altered
        return Audit.model_validate_json(data)
    except (FileNotFoundError, ValidationError) as error:
        raise altered from error


def load_twins(paths: DatasetPaths, drops: Sequence[Drop]) -> tuple[Twin, ...]:
    """Pairs of images that show the same picture, as the audits of these drops found them."""
    return tuple(twin for drop in drops for twin in load_audit(paths, drop).twins)


def load_looks(paths: DatasetPaths, drop: Drop) -> Looks | None:
    """What the images of one drop look like; None if that was never, or is no longer, recorded.

    Raises
    ------
    InventoryError
        If the record is damaged.
    """
    file = paths.drop(drop.drop_id) / LOOKS_FILE
    return Looks.from_bytes(file.read_bytes(), drop.n_items) if file.is_file() else None


def verify_drops(paths: DatasetPaths) -> list[str]:
    """What is wrong with the records of all drops, in words; nothing if all is well."""
    try:
        drops = load_drops(paths)
    except InventoryError as error:
        return [str(error)]
    problems = []
    for drop in drops:
        for check in (load_rows, load_audit, load_looks):
            try:
                check(paths, drop)
            except InventoryError as error:
                problems.append(f"{drop.drop_id}: {error}")
    return problems


def load_locations(paths: DatasetPaths) -> dict[str, str]:
    """Where renamed source files are now: path relative to the source root by image_id, or by `mask_key`.

    Images without a label can come again from another folder than their drop did; then the path is absolute.

    Raises
    ------
    InventoryError
        If the record is damaged.
    """
    try:
        record = json.loads(paths.locations.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InventoryError(f"{paths.locations.name} is damaged.", "Delete it and ingest the source again.") from error
    return {str(image_id): str(path) for image_id, path in record.items()}


def save_locations(paths: DatasetPaths, locations: Mapping[str, str]) -> None:
    """Replace the record of renamed files, whole, if it differs."""
    if locations != load_locations(paths):
        write_atomic(paths.locations, json.dumps(dict(locations), indent=1, sort_keys=True) + "\n")
        paths.locations.chmod(0o600)


def dataset_classes(drops: Sequence[Drop]) -> tuple[str, ...]:
    """Class names in the order of the class index; empty if there is no drop."""
    return drops[-1].classes if drops else ()


def _load_drop(folder: Path) -> Drop:
    try:
        fields = json.loads((folder / DROP_FILE).read_bytes())
        digest = fields.pop("sha256", "") if isinstance(fields, dict) else ""
        drop = Drop.model_validate_json(json.dumps(fields))
    except FileNotFoundError as error:
        raise InventoryError(f"{DROP_FILE} of drop {folder.name!r} is missing.", RESTORE) from error
    except ValidationError as error:
        wrong = ", ".join(str(e["loc"][0]) if e["loc"] else e["type"] for e in error.errors())
        if wrong == "schema_version":
            raise InventoryError(
                f"{DROP_FILE} of drop {folder.name!r} has a schema_version of another version of this tool.",
                "Use that version, or ingest the source into another work folder.",
            ) from error
        raise InventoryError(f"{DROP_FILE} of drop {folder.name!r} is damaged ({wrong}).", RESTORE) from error
    except ValueError as error:
        raise InventoryError(f"{DROP_FILE} of drop {folder.name!r} is damaged: it is no JSON.", RESTORE) from error
    if drop.schema_version >= 3 and digest != digest_json(fields):
        raise InventoryError(f"{DROP_FILE} of drop {folder.name!r} was altered.", RESTORE)
    if drop.drop_id != folder.name:
        raise InventoryError(f"The folder of drop {drop.drop_id!r} is named {folder.name!r}.", "Rename it back.")
    return drop


def _sealed(drop: Drop) -> bytes:
    """Contents of drop.json, which end with the digest of all the rest."""
    fields = drop.model_dump(mode="json")
    return (json.dumps({**fields, "sha256": digest_json(fields)}, indent=1) + "\n").encode("utf-8")


def _json(model: BaseModel) -> bytes:
    return (model.model_dump_json(indent=1) + "\n").encode("utf-8")


def _publish(staging: Path, target: Path) -> None:
    """Rename; where a network file system reports failure though it won, `staging` is gone."""
    try:
        staging.rename(target)
    except OSError as error:
        if staging.exists():
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(target.name) from error
            raise
    sync_folder(target.parent)


def _taken(drop_id: str) -> InventoryError:
    return InventoryError(
        f"Drop {drop_id!r} exists already, and drops are never changed.", "Choose another id: --drop NAME"
    )
