"""Lines of a CSV that name DICOM files by their UIDs, and the files that they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from manifests.dicom_files import DICOM, read_identity
from manifests.errors import InventoryError, ReadError
from manifests.listing import image_files
from manifests.readers import SNIFFED_BYTES, decoder_of, open_regular
from manifests.reading import Identity

UID_ROLES = ("study", "series", "instance")
"""Roles of columns that hold StudyInstanceUID, SeriesInstanceUID and SOPInstanceUID."""

Cells = Mapping[str, str]
"""Text of one line by role."""


class Named(NamedTuple):
    """What the lines of a CSV name."""

    files: tuple[tuple[int, str], ...]
    """Line, and path of a file relative to the root; a line can name many files."""
    unreadable: int
    """DICOM files whose header cannot be read, so that no line can name them."""


def files_of(root: Path, lines: Mapping[int, Cells]) -> Named:
    """Find the DICOM files below a folder that each line of a CSV names.

    Parameters
    ----------
    root : Path
        The source folder, resolved.
    lines : Mapping[int, Mapping[str, str]]
        Cells of each line by its number; those of `UID_ROLES` that are not empty must all be the file's.

    Raises
    ------
    InventoryError
        If a line has no UID, two lines name one file, or no line names any.
    """
    wanted = {line: _uids(cells, line) for line, cells in lines.items()}
    by_uids: dict[tuple[str, ...], list[int]] = {}
    for line, uids in wanted.items():
        by_uids.setdefault(uids, []).append(line)
    forms = {tuple(bool(uid) for uid in uids) for uids in wanted.values()}
    left, named, unreadable = set(wanted), [], 0
    for path, identity in _identities(root):
        if identity is None:
            unreadable += 1
            continue
        own = (identity.study, identity.series, identity.instance)
        keys = [tuple(uid if used else "" for uid, used in zip(own, form, strict=True)) for form in sorted(forms)]
        found = [line for key in keys for line in by_uids.get(key, ())]
        if len(found) > 1:
            raise InventoryError(
                f"CSV lines {found[0]} and {found[1]} both name {path!r}.", "Keep one line for each file."
            )
        left.difference_update(found)
        named += [(line, path) for line in found]
    if len(left) == len(wanted):
        raise InventoryError(
            f"No line of the CSV names a DICOM file of the source; line {min(left)} is the first.",
            f"Check its UIDs and the folder{_told(unreadable)}.",
        )
    return Named(tuple(named), unreadable)


def _told(unreadable: int) -> str:
    return f"; {unreadable} DICOM files there have a header that cannot be read" if unreadable else ""


def _uids(cells: Cells, line: int) -> tuple[str, ...]:
    uids = tuple(cells.get(role, "").strip() for role in UID_ROLES)
    if not any(uids):
        raise InventoryError(f"CSV line {line} has no UID.", "Fill the cell or delete the line.")
    return uids


def _identities(root: Path) -> Iterator[tuple[str, Identity | None]]:
    """Path and identity of every DICOM file below a folder that has one; None where its header cannot be read."""
    for path in image_files(root):
        try:
            with open_regular(path) as stream:
                if decoder_of(path.name, stream.read(SNIFFED_BYTES)) is not DICOM:
                    continue
                stream.seek(0)
                identity = read_identity(stream)
        except ReadError:
            yield path.relative_to(root).as_posix(), None
            continue
        if identity.instance:
            yield path.relative_to(root).as_posix(), identity
