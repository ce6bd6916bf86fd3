"""Which files of a source folder are samples, and what their place says of label, split and mask.

Two layouts are told apart by the names of the top folders: `<class>/...` and `<split>/<class>/...`. Folders deeper down
do not matter, so that `<class>/<patient>/` is fine. Images beside the top folders carry no label. A third layout, the
CSV, is in `labels`.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from unicodedata import normalize

from manifests.errors import InventoryError
from manifests.layout import EXPORT_RECORD, EXPORT_SCHEMA
from manifests.readers import DECODERS, is_image_file
from manifests.types import Split

SPLIT_WORDS: Mapping[str, Split] = MappingProxyType(
    dict.fromkeys(("train", "training"), Split.TRAIN)
    | dict.fromkeys(("val", "valid", "validation"), Split.VAL)
    | dict.fromkeys(("test", "testing"), Split.TEST)
)
"""Words for a split, in any case, as folder names or in a CSV."""
MASK_FOLDERS = frozenset({"mask", "masks"})
MASK_STEM = re.compile(r"(?P<stem>.+)_mask(?:_(?P<number>\d+))?", re.IGNORECASE | re.DOTALL)
CSV_ADVICE = "Name files, labels and splits in a CSV: --labels labels.csv"


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One sample by its place, before its file was opened."""

    path: str
    """Relative to the source root, with forward slashes."""
    label: str = ""
    split: Split = Split.NONE
    group: str = ""
    """Patient or study as the source names it; never stored."""
    mask_path: str = ""
    extra_masks: int = 0
    """Further masks of this image, which are not used."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All samples of a source, sorted by path."""

    images: tuple[ListedImage, ...]
    ignored: int = 0
    """Hidden entries, links to folders inside the source, exports of MedFocus, and files that are no images."""
    unnamed: int = 0
    """Images in the source that its CSV does not name, neither as image nor as mask."""
    absent: int = 0
    """Lines of the CSV whose UIDs name nothing in the source."""
    unreadable: int = 0
    """DICOM files whose UIDs cannot be read, so that no line of the CSV can name them."""


def list_folders(root: Path) -> Listing:
    """List class folders or split folders.

    Parameters
    ----------
    root : Path
        The source folder, resolved.

    Raises
    ------
    InventoryError
        If there is no image, the layout is ambiguous, a name is not UTF-8, a link leaves the source, a folder cannot
        be read, or the source is an export of MedFocus.
    """
    if is_export(root):
        raise InventoryError(
            f"The folder {root.name!a} is an export of MedFocus, and its pictures are results.",
            "Name the folder of the images that they were made of.",
        )
    paths: list[PurePosixPath] = []
    ignored = _walk(root, root, paths)
    if not paths:
        raise InventoryError(
            f"No image in {root.name!a} ({ignored} other entries).",
            f"Looked for <class>/<file> and train|val|test/<class>/<file> ending in {', '.join(DECODERS)}.",
        )
    samples, masks = _pair_masks(paths)
    has_splits = _check_layout(samples)
    images = (_listed(path, masks.get(path, ()), has_splits=has_splits) for path in samples)
    return Listing(tuple(sorted(images, key=lambda image: image.path)), ignored)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image."""
    return name.lower().endswith(tuple(DECODERS))


def is_mask_name(name: str) -> bool:
    """Whether a file is named like a mask: `<stem>_mask.png`, `<stem>_mask_1.png`."""
    return MASK_STEM.fullmatch(_stem(name)) is not None


def inside(root: Path, path: Path) -> bool:
    """Whether a path stays below the resolved root once all links are followed."""
    try:
        return path.resolve().is_relative_to(root)
    except RuntimeError:  # a loop of links leads nowhere, so not outside either
        return True


def image_files(root: Path) -> Iterator[Path]:
    """All image files below a folder but hidden ones and exports of MedFocus; what cannot be listed is passed over."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_export(here / name))
        paths = (here / name for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if is_image_file(path))


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export of MedFocus, whose pictures are results and no samples."""
    record = folder / EXPORT_RECORD
    try:
        told = json.loads(record.read_bytes()) if record.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("schema") == EXPORT_SCHEMA


def _walk(folder: Path, root: Path, found: list[PurePosixPath]) -> int:
    """Append the images below a folder; return how many other entries there are."""
    ignored = 0
    for entry in _entries(folder):
        is_folder = entry.is_dir()
        is_image = is_image_name(entry.name) or (not is_folder and is_image_file(entry))
        if entry.name.startswith(".") or not (is_image or is_folder) or is_export(entry):
            ignored += 1
            continue
        _check_utf8(entry.name)
        if entry.is_symlink() and not inside(root, entry):
            relative = entry.relative_to(root).as_posix()
            raise InventoryError(f"The link {relative!r} leaves the source folder.", "Copy what it points to.")
        if is_image:
            found.append(PurePosixPath(entry.relative_to(root).as_posix()))
        elif entry.is_symlink():
            ignored += 1  # its images are listed where they are
        else:
            ignored += _walk(entry, root, found)
    return ignored


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InventoryError(
            f"The folder {folder.name!a} cannot be listed: {error.strerror}.", "Check the path and its permissions."
        ) from error


def _check_utf8(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InventoryError(f"The file name {name!a} is not UTF-8.", "Rename it, for example with convmv.") from error


def _stem(name: str) -> str:
    """File name without its image suffix."""
    suffixes = [s for s in DECODERS if name.lower().endswith(s)]
    return name[: -len(max(suffixes, key=len))] if suffixes else name


def _pair_masks(
    paths: Sequence[PurePosixPath],
) -> tuple[list[PurePosixPath], dict[PurePosixPath, list[PurePosixPath]]]:
    """Part samples from masks that lie beside them as `<stem>_mask.png`, the plain one first.

    The breast ultrasound set BUSI mixes both in one folder, up to three masks an image.
    """
    stems = {(path.parent, _stem(path.name)) for path in paths}
    samples: list[PurePosixPath] = []
    masks: dict[tuple[PurePosixPath, str], list[tuple[int, PurePosixPath]]] = defaultdict(list)
    for path in paths:
        match = MASK_STEM.fullmatch(_stem(path.name))
        if match and (path.parent, match["stem"]) in stems:
            masks[path.parent, match["stem"]].append((int(match["number"] or -1), path))
        else:
            samples.append(path)
    return samples, {p: [m for _, m in sorted(masks.get((p.parent, _stem(p.name)), []))] for p in samples}


def _check_layout(paths: Sequence[PurePosixPath]) -> bool:
    """Whether the top folders are splits; refuse what could be read in two ways."""
    folders = {part for path in paths for part in path.parts[:-1]}
    if masks := sorted(f for f in folders if f.lower() in MASK_FOLDERS):
        raise InventoryError(f"The folder {masks[0]!r} seems to hold masks, not samples.", CSV_ADVICE)
    tops = {path.parts[0] for path in paths if len(path.parts) > 1}
    splits = {top for top in tops if top.lower() in SPLIT_WORDS}
    if splits and splits != tops:
        raise InventoryError(
            f"Some top folders are splits ({_names(splits)}) and some are not ({_names(tops - splits)}).", CSV_ADVICE
        )
    below = {p.parts[0] for p in paths if not splits and len(p.parts) > 2 and p.parts[1].lower() in SPLIT_WORDS}
    if below:
        raise InventoryError(
            f"Split folders lie one level down, in {_names(below)}.", f"Ingest that folder instead. Or: {CSV_ADVICE}"
        )
    return bool(splits)


def _names(names: set[str]) -> str:
    shown = [repr(name) for name in sorted(names)]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _listed(path: PurePosixPath, masks: Sequence[PurePosixPath], *, has_splits: bool) -> ListedImage:
    folders = path.parts[:-1]
    split = SPLIT_WORDS[folders[0].lower()] if has_splits and folders else Split.NONE
    label = next(iter(folders[1:] if has_splits else folders), "")
    return ListedImage(
        path=str(path),
        label=normalize("NFC", label),
        split=split,
        mask_path=str(masks[0]) if masks else "",
        extra_masks=max(0, len(masks) - 1),
    )
