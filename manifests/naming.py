"""Which image is meant by an id, the beginning of one, a path in the source, or one frame of a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from manifests.errors import InventoryError
from manifests.types import ImageRow

SHORTEST = 4
"""Digits that the beginning of an id needs."""
SHOWN = 5
"""Ids that an error names at most."""


def find_image(rows: Sequence[ImageRow], locations: Mapping[str, str], what: str) -> str:
    """The image_id that a path, `path#frame`, an id or its unique beginning names.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of all drops.
    locations : Mapping[str, str]
        Where renamed files are now, by image_id; a file is found by its new path, and by the one that it was ingested
        under while no other file is known there.
    what : str
        What was typed.

    Raises
    ------
    InventoryError
        If there is none or there are several.
    """
    path, _, frame = what.rpartition("#")
    found = _images_at(rows, locations, what)
    if not found and path:
        found = [row for row in _images_at(rows, locations, path) if str(row.frame) == frame]
    if not found:
        return _by_id({row.image_id for row in rows}, what)
    ids, frames = sorted({row.image_id for row in found}), {row.frame for row in found}
    if len(ids) == 1:
        return ids[0]
    if len(frames) == len(ids):
        raise InventoryError(
            f"{what!r} is a file of {len(ids)} images, frames {min(frames)} to {max(frames)}.",
            f"Name one: {what}#{min(frames)}",
        )
    raise InventoryError(
        f"{what!r} names {len(ids)} images, because a file was changed or sources have the same names:"
        f" {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}.",
        "Name one by its id; pipeline explain ID tells its drop.",
    )


def find_images(rows: Sequence[ImageRow], locations: Mapping[str, str], what: str) -> frozenset[str]:
    """The image_ids that are meant where several may be: as `find_image`, and all frames of the one file at a path.

    Raises
    ------
    InventoryError
        If there is none, or a path names several files.
    """
    found = _images_at(rows, locations, what)
    if len({row.sha256 for row in found}) == 1:
        return frozenset(row.image_id for row in found)
    return frozenset({find_image(rows, locations, what)})


def _images_at(rows: Sequence[ImageRow], locations: Mapping[str, str], path: str) -> list[ImageRow]:
    """Rows of a file that lies at a path now; if there is none, of one that lay there when it was ingested."""
    now = [row for row in rows if locations.get(row.image_id, row.path) == path]
    return now or [row for row in rows if row.path == path]


def _by_id(known: Collection[str], image_id: str) -> str:
    if image_id in known:
        return image_id
    found = sorted(name for name in known if len(image_id) >= SHORTEST and name.startswith(image_id))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} images begin with" if found else "There is no image"
    raise InventoryError(f"{what} {image_id!r}.", "Ids are in inventory.csv, predictions.csv and the report.")
