"""Supplied masks of some test images, on the canvas: what masks and maps of a report are compared with, read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.types import Split
from pipeline.workspace import Workspace
from stages.images import Placement, letterbox

SUPPLIED: Final = "supplied"
"""The policy whose masks are the supplied ones: nothing of it is compared with them."""
MOST: Final = 200
"""Test images that are compared: the first in the order of their digests."""
EMPTY: Final = "its mask is empty"

Key = tuple[str, int]
"""Drop and row of an image."""


class SuppliedMask(NamedTuple):
    """One mask that is not empty."""

    mask: NDArray[np.bool_]
    """(S, S)."""
    placement: Placement
    """Where the image lies on the canvas."""


@dataclass(frozen=True, slots=True)
class SuppliedMasks:
    """Those that can be compared with, and why the others cannot."""

    found: Mapping[Key, SuppliedMask]
    unusable: Mapping[str, Set[Key]]
    """Images whose mask cannot be read or is empty, by reason."""


def take_supplied(workspace: Workspace, most: int = MOST) -> SuppliedMasks:
    """Read the supplied masks of the first test images that have one and were not withdrawn."""
    known = [
        (drop.drop_id, row)
        for drop in workspace.drops
        for row in workspace.rows(drop.drop_id)
        if row.split == Split.TEST and row.mask_path and row.image_id not in workspace.withdrawn
    ]
    found: dict[Key, SuppliedMask] = {}
    unusable: defaultdict[str, set[Key]] = defaultdict(set)
    for drop_id, row in sorted(known, key=lambda item: (item[1].sha256, item[1].frame, item[0], item[1].row))[:most]:
        key = drop_id, row.row
        try:
            supplied = workspace.image_source(drop_id).read_mask(row)
        except ReadError as error:
            unusable[error.reason].add(key)
            continue
        one = SuppliedMask(*letterbox(supplied, workspace.config.embeddings.canvas_px))
        if one.mask.any():
            found[key] = one
        else:
            unusable[EMPTY].add(key)
    return SuppliedMasks(found, unusable)
