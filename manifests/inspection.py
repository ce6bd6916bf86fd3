"""What ingest sees when it decodes the images of a new drop, and compares them with all earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from manifests.audit import Seen
from manifests.confounds import find_confounds
from manifests.drops import Drop, load_locations, load_looks
from manifests.inventory import Scan
from manifests.layout import DatasetPaths
from manifests.looks import Looks, look, no_looks
from manifests.readers import WITHDRAWN, ImageSource
from manifests.shifts import find_shifts
from manifests.twins import Twin, find_pairs, name_twins
from manifests.types import ImageRow


def inspect(
    rows: Sequence[ImageRow],
    source: ImageSource,
    found: Scan,
    earlier: tuple[Sequence[ImageRow], Looks],
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Looks, Seen]:
    """Decode every image of a new drop, and find what an audit should know.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        The new drop.
    source : ImageSource
        Its source.
    found : Scan
        What the scan of the source said of every file.
    earlier : tuple[Sequence[ImageRow], Looks]
        Rows and looks of all earlier drops, from `earlier_looks`.
    on_image : Callable[[int, int], None], optional
        Called after every image with the number of images done and of all images.

    Returns
    -------
    Looks
        Of the new drop.
    Seen
        What they show.
    """
    old_rows, old_looks = earlier
    looks, undecodable = look(rows, source, on_image)
    everything = [*old_rows, *rows]
    pairs = find_pairs(everything, old_looks.together(looks), len(old_rows))
    twins = name_twins(everything, pairs)
    new = {row.image_id for row in rows}
    items = [item for item in found.items if item.image_id in new]
    unreadable = {item.image_id: item.reason for item in items if item.reason}
    return looks, Seen(
        extra_masks={item.image_id: item.extra_masks for item in items if item.extra_masks},
        unreadable=undecodable | unreadable,
        two_valued=frozenset(row.image_id for row, flat in zip(rows, looks.two_valued, strict=True) if flat),
        twins=twins,
        confounds=find_confounds(rows, looks, _together(rows, twins)),
        shifts=find_shifts(rows, looks, old_rows, old_looks),
        not_compared=sum(row.width > 0 for row, seen in zip(old_rows, old_looks.seen, strict=True) if not seen),
    )


def earlier_looks(
    paths: DatasetPaths, drops: Sequence[tuple[Drop, Sequence[ImageRow]]], withdrawn: Collection[str]
) -> Looks:
    """Looks of the rows of earlier drops that stand, made anew from their sources where no record of them is left."""
    looks = no_looks()
    locations = load_locations(paths)
    for drop, rows in drops:
        stands = np.array([row.image_id not in withdrawn for row in rows])
        kept = load_looks(paths, drop)
        if kept is None and stands.any():
            refused = dict.fromkeys(withdrawn, WITHDRAWN)
            source = ImageSource(Path(drop.source_root), locations, refused=refused, reading=drop.reading)
            kept = look(rows, source)[0]
        looks = looks.together(kept.take(stands) if kept is not None else no_looks())
    return looks


def _together(rows: Sequence[ImageRow], twins: Sequence[Twin]) -> list[str]:
    """A name for each row, the same for rows of one group and for twins of theirs."""
    parent = {row.image_id: row.group_id for row in rows} | {row.group_id: row.group_id for row in rows}

    def top(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for twin in twins:
        if twin.image_id in parent and twin.other_id in parent:
            parent[top(twin.image_id)] = top(twin.other_id)
    return [top(row.image_id) for row in rows]
