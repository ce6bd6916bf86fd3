"""`ingest`: the images of a source that are in no drop yet become the next drop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from manifests.audit import Audit, check, require_clean
from manifests.changes import Changes, compare
from manifests.drops import (
    Drop,
    audit_digest,
    dataset_classes,
    load_drops,
    load_locations,
    load_rows,
    load_twins,
    save_locations,
    write_drop,
)
from manifests.errors import InventoryError, UsageError
from manifests.fingerprint import digest_bytes
from manifests.inspection import earlier_looks, inspect
from manifests.inventory import Scan, number_rows, scan
from manifests.inventory_file import format_rows
from manifests.layout import DatasetPaths, check_name
from manifests.pseudonyms import SALT_VARIABLE, check_salt_outside
from manifests.readers import ImageSource
from manifests.reading import Reading
from manifests.types import ImageRow, Split
from manifests.withdrawals import load_withdrawals, withdrawn_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """What the user chooses at ingest."""

    dataset: str
    drop_id: str | None = None
    """Name of the new drop; by default drop-001, drop-002, ..."""
    labels: Path | None = None
    """CSV that names files, labels, splits, groups and masks."""
    columns: Mapping[str, str] | None = None
    """Column of the CSV by role."""
    chunk_items: int = 64
    reading: Reading | None = None
    """How DICOM and NIfTI files become pictures; by default as the data set's earlier drops, else by `Reading()`."""
    labelled: bool = True
    """Whether folders and the CSV say what is in an image; else their labels and splits are left out."""
    strict: bool = False
    """Refuse a drop with findings that make scores wrong, instead of reporting and flagging them."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What ingest found and did."""

    drop: Drop | None
    """None if every image was known already."""
    audit: Audit | None
    """Audit of the new drop."""
    new: int
    """Rows of the new drop."""
    renamed: int
    vanished: int
    """Rows of this source whose bytes are no longer in it; they stay in their drop."""
    unchanged: int
    duplicates: int
    """Files with the bytes of another file: rows of the new drop, and copies of known images, which make no row."""
    changed: int
    """Files of this source whose bytes are others than they were; the new bytes are rows of the new drop."""
    pictures_known: int
    """Images of the new drop that show a picture of an earlier one, though their bytes differ."""
    conflicts: tuple[str, ...]
    """Known images with another label, split or mask than before, each text led by image_id; nothing was changed."""
    ignored: int
    unnamed: int
    """Images in the source that the CSV does not name."""
    skipped: Mapping[str, int]
    """DICOM files that hold no image, by what they hold (`RTSTRUCT`)."""
    absent: int
    """Lines of the CSV whose UIDs name nothing in the source."""
    unreadable: int
    """DICOM files whose UIDs cannot be read, so that no line of the CSV can name them."""
    shared_patient: tuple[int, int]
    """DICOM files and studies of the PatientID that most files carry."""
    burned_in: Mapping[str, int]
    """DICOM files with pictures by what they say of burned-in annotations: `YES`, `NO`, or empty."""
    without_patient: int
    """Rows of the new drop that name no patient or study: they cannot be kept together with others."""
    leaks: tuple[str, ...]
    """image_ids of test and validation images that leak through the new drop; scores flag the test images."""
    leaking: int
    """Rows of all drops that are such images; equal bytes are several rows of one image_id."""
    leaking_earlier: int
    """How many of them came with an earlier drop."""
    files: Mapping[str, str]
    """image_id of every image of the source, known ones too, by path relative to it."""


Progress = Callable[[int, int], None]
"""Called with the number of files done and of all files."""


def ingest(
    paths: DatasetPaths,
    source: Path,
    options: IngestOptions,
    on_file: Progress | None = None,
    on_image: Progress | None = None,
) -> IngestReport:
    """Make a drop of all images of a source whose bytes are in no drop yet.

    Parameters
    ----------
    paths : DatasetPaths
        Folders of the data set.
    source : Path
        The source folder; it is only read.
    options : IngestOptions
        What the user chose.
    on_file : Progress, optional
        Called after every file that was digested.
    on_image : Progress, optional
        Called after every new image that was decoded and compared.

    Raises
    ------
    InventoryError
        If the source or an earlier drop cannot be used, the id is taken, a strict audit has findings, or the salt lies
        in the data set's folder.
    UsageError
        If the id cannot be a folder name or `chunk_items` is below 1.
    """
    if options.chunk_items < 1:
        raise UsageError(f"chunk_items is {options.chunk_items}.", "Use 1 or more; 64 is the default.")
    check_salt_outside(paths.root)
    drops = load_drops(paths)
    drop_id = check_name("Drop", options.drop_id or _next_id(drops))
    reading = _reading(options.reading, drops)
    found = scan(source, options.columns, options.labels, on_file, reading)
    if not options.labelled:
        found = replace(found, items=tuple(replace(item, label="", split=Split.NONE) for item in found.items))
    _check_salt(found, drops)
    root = source.resolve()
    gone = withdrawn_ids(load_withdrawals(paths))
    earlier = [(drop, load_rows(paths, drop)) for drop in drops]
    old = [row for _, of_drop in earlier for row in of_drop if row.image_id not in gone]
    here = {drop.drop_id for drop in drops if Path(drop.source_root) == root}
    # A withdrawn image is known, so that it never returns; but nobody misses it.
    known = [(row, drop.drop_id in here and row.image_id not in gone) for drop, of_drop in earlier for row in of_drop]
    changes = compare(root, found.items, known, load_locations(paths))
    rows = number_rows(sorted(changes.new, key=lambda item: (item.sha256 or item.image_id, item.frame)))
    drop, audit = None, None
    if rows:
        before = (old, earlier_looks(paths, earlier, gone))
        looks, seen = inspect(rows, ImageSource(root, reading=reading), found, before, on_image)
        audit = check(rows, old, seen, load_twins(paths, drops))
        require_clean(audit, strict=options.strict)
        drop = Drop(
            drop_id=drop_id,
            dataset=options.dataset,
            source_root=str(root),
            n_items=len(rows),
            chunk_items=options.chunk_items,
            classes=_extended(dataset_classes(drops), rows),
            inventory_sha256=digest_bytes(format_rows(rows)),
            audit_sha256=audit_digest(audit),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            previous=tuple(earlier.drop_id for earlier in drops),
            salt_id=found.salt_id,
            reading=reading,
        )
        write_drop(paths, drop, rows, audit, looks)
    save_locations(paths, changes.locations)
    return _report(drop, audit, rows, changes, found, old)


def _extended(classes: tuple[str, ...], rows: Sequence[ImageRow]) -> tuple[str, ...]:
    return classes + tuple(sorted({row.label for row in rows} - set(classes) - {""}))


def _next_id(drops: Sequence[Drop]) -> str:
    taken = {drop.drop_id for drop in drops}
    number = len(drops) + 1
    while f"drop-{number:03d}" in taken:
        number += 1
    return f"drop-{number:03d}"


def _reading(asked: Reading | None, drops: Sequence[Drop]) -> Reading:
    """One data set is read in one way: windows that differ from drop to drop would be a shortcut to the drop."""
    if not drops:
        return asked or Reading()
    before = drops[-1].reading
    if asked and (differences := asked.differences(before)):
        raise InventoryError(
            f"This drop would be read otherwise than the earlier ones: reading.{differences}.",
            "Leave out [reading], or ingest everything into another data set.",
        )
    return before


def _check_salt(found: Scan, drops: Sequence[Drop]) -> None:
    """With another salt one patient would get two ids, and leaks between drops would go unseen."""
    if found.salt_id and any(drop.salt_id not in ("", found.salt_id) for drop in drops):
        raise InventoryError(
            "Earlier drops hashed patients with another salt, so leaks across drops could not be seen.",
            f"Copy the salt file of the first ingest and name it: {SALT_VARIABLE}=FILE",
        )


def _report(
    drop: Drop | None,
    audit: Audit | None,
    rows: Sequence[ImageRow],
    changes: Changes,
    found: Scan,
    old: Sequence[ImageRow],
) -> IngestReport:
    return IngestReport(
        drop=drop,
        audit=audit,
        new=len(rows),
        renamed=changes.renamed,
        vanished=changes.vanished,
        unchanged=changes.unchanged,
        duplicates=changes.copies + sum(bool(row.duplicate_of) for row in rows),
        changed=changes.changed,
        pictures_known=len(_pictures_known(rows, audit)),
        conflicts=changes.conflicts,
        ignored=found.ignored,
        unnamed=found.unnamed,
        skipped=found.skipped,
        burned_in=found.burned_in,
        absent=found.absent,
        unreadable=found.unreadable,
        shared_patient=found.shared_patient,
        without_patient=sum(row.group_id == (row.sha256[:16] or row.image_id) for row in rows),
        leaks=audit.leaks if audit else (),
        leaking=_leaking(audit, [*old, *rows]),
        leaking_earlier=_leaking(audit, old),
        files={item.place: item.image_id for item in found.items},
    )


def _leaking(audit: Audit | None, rows: Sequence[ImageRow]) -> int:
    leaks = set(audit.leaks) if audit else set()
    return sum(row.image_id in leaks and row.split in (Split.VAL, Split.TEST) for row in rows)


def _pictures_known(rows: Sequence[ImageRow], audit: Audit | None) -> set[str]:
    new = {row.image_id for row in rows}
    pairs = [(twin.image_id, twin.other_id) for twin in audit.twins] if audit else []
    return {one for pair in pairs for one, other in (pair, pair[::-1]) if one in new and other not in new}
