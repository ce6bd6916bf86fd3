"""Withdrawals: which images must leave every later result, because a consent was revoked or a drop was wrong.

A withdrawal is a file of its own that is never changed. It names images by their ids, and holds no path and no patient.
What it takes away is not deleted here: `forgetting` does that.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.disk import make_private, write_atomic
from manifests.drops import Drop, load_drops, load_locations, load_rows
from manifests.errors import InventoryError, UsageError
from manifests.layout import DatasetPaths
from manifests.naming import find_images
from manifests.pseudonyms import SALT_VARIABLE, pseudonym, read_salt, salt_identity
from manifests.records import now
from manifests.types import ImageRow

RESTORE = "Restore the folder withdrawals/ from your backup: without it withdrawn images would return."


class Withdrawal(BaseModel):
    """One withdrawal, as its file keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    withdrawal_id: str
    """UTC time to the second and 4 hex digits, so that names sort by time."""
    created: str
    """UTC time in ISO form."""
    reason: str
    """What the user said; no patient's name belongs here."""
    drop: str = ""
    """The drop that was withdrawn whole; empty if images were."""
    image_ids: tuple[str, ...] = Field(min_length=1)
    """All images that it takes away, sorted."""


def withdraw(
    paths: DatasetPaths,
    reason: str,
    *,
    drop: str = "",
    image_ids: Sequence[str] = (),
    patient: str = "",
) -> Withdrawal:
    """Record that images are withdrawn.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    reason : str
        Why, in words.
    drop : str
        A drop whose every image is withdrawn.
    image_ids : Sequence[str]
        Ids of images, unique beginnings of at least four digits, paths in the source, or `path#frame`; the path of a
        file of many frames or slices means all of them.
    patient : str
        A patient or study as the source's CSV or PatientID names it; it is stripped, hashed and not kept.

    Raises
    ------
    UsageError
        If nothing, or more than one kind of thing, is named.
    InventoryError
        If something that is named is not there or is withdrawn already, or the record cannot be read.
    StoreError
        If it cannot be written; then nothing is withdrawn.
    """
    patient = patient.strip()  # as ingest does
    if sum(map(bool, (drop, image_ids, patient))) != 1:
        raise UsageError("Name what is withdrawn.", "One of: --image ID (several times), --patient NAME, --drop DROP.")
    if not reason.strip():
        raise UsageError("A withdrawal needs a reason.", 'Say why: --reason "consent revoked"')
    drops = [(each, load_rows(paths, each)) for each in load_drops(paths)]
    chosen = _chosen(drops, load_locations(paths), drop, image_ids, patient)
    gone = withdrawn_ids(load_withdrawals(paths))
    if chosen <= gone:
        raise InventoryError(f"All {len(chosen)} images are withdrawn already.", "See: pipeline drops")
    record = Withdrawal(
        withdrawal_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}",
        created=now(),
        reason=reason.strip(),
        drop=drop,
        image_ids=tuple(sorted(chosen - gone)),
    )
    file = make_private(paths.withdrawals) / f"{record.withdrawal_id}.json"
    write_atomic(file, record.model_dump_json(indent=1) + "\n")
    file.chmod(0o600)
    return record


def share_withdrawals(paths: DatasetPaths, other: DatasetPaths) -> None:
    """Make another data set's folder heed every withdrawal of this one, because it may hold the same images.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    for record in load_withdrawals(paths):
        file = make_private(other.withdrawals) / f"{record.withdrawal_id}.json"
        if not file.exists():
            write_atomic(file, record.model_dump_json(indent=1) + "\n")
            file.chmod(0o600)


def load_withdrawals(paths: DatasetPaths) -> tuple[Withdrawal, ...]:
    """All withdrawals in order of time.

    Raises
    ------
    InventoryError
        If one is damaged or of another version.
    """
    found = []
    for file in sorted(paths.withdrawals.glob("*.json")) if paths.withdrawals.is_dir() else ():
        try:
            record = Withdrawal.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise InventoryError(f"withdrawals/{file.name} is damaged or of another version.", RESTORE) from error
        if file.stem != record.withdrawal_id:
            raise InventoryError(f"The withdrawal {record.withdrawal_id} is named {file.name}.", "Rename it back.")
        found.append(record)
    return tuple(found)


def withdrawn_ids(withdrawals: Iterable[Withdrawal]) -> frozenset[str]:
    """image_ids of all withdrawn images."""
    return frozenset(image_id for record in withdrawals for image_id in record.image_ids)


def _chosen(
    drops: Sequence[tuple[Drop, Sequence[ImageRow]]],
    locations: Mapping[str, str],
    drop_id: str,
    images: Sequence[str],
    patient: str,
) -> set[str]:
    if drop_id:
        for drop, rows in drops:
            if drop.drop_id == drop_id:
                return {row.image_id for row in rows}
        raise InventoryError(f"There is no drop {drop_id!r}.", f"Drops: {', '.join(d.drop_id for d, _ in drops)}.")
    rows = [row for _, of_drop in drops for row in of_drop]
    if patient:
        return _of_patient(drops, rows, patient)
    return {image_id for image in images for image_id in find_images(rows, locations, image)}


def _of_patient(drops: Sequence[tuple[Drop, Sequence[ImageRow]]], rows: Sequence[ImageRow], patient: str) -> set[str]:
    salt = read_salt()
    if all(drop.salt_id != salt_identity(salt) for drop, _ in drops):
        raise InventoryError(
            "No drop names patients by this salt.",
            f"Name the salt file of the ingest, {SALT_VARIABLE}=FILE, or the images: --image ID",
        )
    found = {row.image_id for row in rows if row.group_id == pseudonym(salt, patient)}
    if not found:
        raise InventoryError(
            "No image belongs to this patient.",
            "Write the name as in the CSV's group column, or as in the files' PatientID.",
        )
    return found
