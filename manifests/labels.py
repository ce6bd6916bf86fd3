"""A source whose files, labels, splits, groups and masks are named by a CSV."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from unicodedata import normalize

from manifests.errors import InventoryError
from manifests.identities import UID_ROLES, files_of
from manifests.listing import SPLIT_WORDS, ListedImage, Listing, image_files, inside
from manifests.types import Split

ROLES = ("file", "label", "split", "group", "mask", *UID_ROLES)
DEFAULT_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {role: (role,) for role in ROLES}
    | {
        "label": ("label", "class"),
        "study": ("study", "StudyInstanceUID"),
        "series": ("series", "SeriesInstanceUID"),
        "instance": ("instance", "SOPInstanceUID"),
    }
)
"""Names under which a role's column is looked for when none are given."""
SHOWN = 5
"""Files that an error names at most."""


def list_csv(root: Path, labels: Path, columns: Mapping[str, str] | None = None) -> Listing:
    """List the files that a CSV names.

    Parameters
    ----------
    root : Path
        The source folder, resolved; paths in the CSV are relative to it.
    labels : Path
        UTF-8 CSV with a header line.
    columns : Mapping[str, str], optional
        Column by role (`file`, `label`, `split`, `group`, `mask`; in place of `file` one or more of `study`, `series`
        and `instance`, UIDs of DICOM files); only these are used, and `file` is the column `file` unless named. By
        default every role's column has the role's name; `class` is a label too, and `StudyInstanceUID` a study; where
        there is a column `file`, UIDs are not looked at.

    Raises
    ------
    InventoryError
        If the CSV cannot be read, lacks a column, names a file twice, a missing one, or one outside the source, or has
        an unknown split.
    """
    header, records = _read(labels)
    used = _columns_used(header, columns)
    lines = {line: _cells(header, cells, used) for line, cells in records}
    lines_of_files, unreadable = list(lines.items()), 0
    if "file" not in used:
        found, unreadable = files_of(root, lines)
        lines_of_files = [(line, {**lines[line], "file": path}) for line, path in found]
    images = [_listed(cells, line) for line, cells in lines_of_files]
    if not images:
        raise InventoryError("The CSV names no file.", "It needs one line for every image below its header.")
    _refuse_files(
        (path for path, n in Counter(image.path for image in images).items() if n > 1),
        "The CSV names files twice",
        "Keep one line for each file.",
    )
    named = [path for image in images for path in (image.path, image.mask_path) if path]
    _refuse_files(
        (path for path in named if not inside(root, root / path)),
        "Links in the source folder lead out of it",
        "Copy what they point to into the source folder.",
    )
    _refuse_files(
        (path for path in named if not _exists(root / path)),
        "The CSV names files that do not exist",
        "Paths are relative to the source folder; check it and the CSV.",
    )
    absent = len(lines) - len({line for line, _ in lines_of_files})
    unnamed = _count_unnamed(root, set(named))
    images.sort(key=lambda image: image.path)
    return Listing(tuple(images), unnamed=unnamed, absent=absent, unreadable=unreadable)


def _count_unnamed(root: Path, named: set[str]) -> int:
    """How many images of the source the CSV leaves out."""
    return sum(path.relative_to(root).as_posix() not in named for path in image_files(root))


def _read(labels: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and each record with its line number; blank lines are skipped."""
    try:
        with labels.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            records = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise InventoryError(f"The CSV {labels.name!r} cannot be read: {error.strerror}.", "Check --labels.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InventoryError(f"{labels.name!r} is not a UTF-8 CSV: {error}.", "Save it as CSV UTF-8.") from error
    if not records:
        raise InventoryError(f"The CSV {labels.name!r} is empty.", "Its first line names the columns.")
    header = [name.strip() for name in records[0][1]]
    if len(header) == 1 and ";" in header[0]:
        raise InventoryError(
            f"The cells of {labels.name!r} are separated by semicolons.", "Save it with commas between cells."
        )
    if len(set(header)) < len(header):
        raise InventoryError(f"A column name occurs twice: {', '.join(header)}.", "Give each column a name of its own.")
    for line, cells in records[1:]:
        if len(cells) != len(header):
            raise InventoryError(
                f"CSV line {line} has {len(cells)} cells, the header has {len(header)}.",
                "Put quotes around cells that hold a comma.",
            )
    return header, records[1:]


def _columns_used(header: list[str], columns: Mapping[str, str] | None) -> dict[str, str]:
    """Column by role, for the roles that are used."""
    if columns is None:
        found = {role: [name for name in names if name in header] for role, names in DEFAULT_COLUMNS.items()}
        used = {role: names[0] for role, names in found.items() if names}
    else:
        used = dict(columns)
    if unknown := sorted(set(used) - set(ROLES)):
        raise InventoryError(f"Unknown role {unknown[0]!r} of a column.", f"Roles: {', '.join(ROLES)}.")
    uids = sorted(set(used) & set(UID_ROLES))
    if columns is not None and uids and "file" in used:
        raise InventoryError(
            f"Columns are named for file and for {uids[0]}: a line names its images by file or UIDs, not both.",
            "Leave one of them out of --columns.",
        )
    if not uids:
        used.setdefault("file", "file")
    if missing := [name for name in used.values() if name not in header]:
        raise InventoryError(
            f"The CSV has no column {missing[0]!r}; it has: {', '.join(header)}.",
            "Name the columns by role, for example --columns file=path,label=diagnosis",
        )
    return used


def _cells(header: list[str], cells: list[str], used: Mapping[str, str]) -> dict[str, str]:
    """Text of one line by role."""
    record = dict(zip(header, cells, strict=True))
    return {role: record[column] for role, column in used.items()}


def _listed(cell: Mapping[str, str], line: int) -> ListedImage:
    if not cell["file"]:
        raise InventoryError(f"CSV line {line} names no file.", "Fill the cell or delete the line.")
    return ListedImage(
        path=_relative(cell["file"], line),
        label=_label(cell.get("label", ""), line),
        split=_split(cell.get("split", ""), line),
        group=cell.get("group", "").strip(),
        mask_path=_relative(cell["mask"], line) if cell.get("mask") else "",
    )


def _label(text: str, line: int) -> str:
    label = normalize("NFC", text.strip())
    if label.lower() == "nan":
        raise InventoryError(
            f"CSV line {line}: the label is {text!r}, which a program wrote for a missing value.",
            "Leave the cell empty where there is no label; rename a class that is really called so.",
        )
    return label


def _split(word: str, line: int) -> Split:
    words = {"": Split.NONE, "none": Split.NONE, **SPLIT_WORDS}
    split = words.get(word.strip().lower())
    if split is None:
        allowed = ", ".join(w for w in words if w)
        raise InventoryError(f"CSV line {line}: unknown split {word!r}.", f"Allowed: {allowed}, or empty.")
    return split


def _relative(text: str, line: int) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath(".") or "\0" in text:
        raise InventoryError(
            f"CSV line {line}: {text!r} is not a path below the source folder.",
            "Write paths relative to the source folder, without '..'.",
        )
    return str(path)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)  # a link to nothing is a row with a reason
    except OSError:  # a name too long for the file system
        return False


def _refuse_files(files: Iterable[str], what: str, fix: str) -> None:
    found = list(files)
    if found:
        shown = ", ".join(repr(path) for path in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InventoryError(f"{what}: {shown}{more}.", fix)
