"""Masks as PNG files, one an image, at the size of the image."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.inventory_file import format_table
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.native import native_masks
from pipeline.exporting.selection import Selection, file_stem

INDEX = "index.csv"
COLUMNS = ("image_id", "label", "split", "status", "file")


def write_png(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    """Write `<image_id>.png` for every image that has a mask, 0 or 255, and index.csv for all images.

    Returns
    -------
    dict[str, int]
        Images by status.
    """
    for unit in selection.units():
        names = {index: f"{file_stem(unit.drop, row)}.png" for index, row in unit.chosen}
        if all(folder.has(names[index]) for index, status in unit.statuses().items() if status != "failed"):
            continue
        for found in native_masks(unit):
            if not folder.has(names[found.index]):
                folder.write(names[found.index], encode_png(found.mask))
    return _write_index(selection, folder)


def encode_png(mask: NDArray[np.bool_]) -> bytes:
    """A mask, (H, W), as an 8-bit grey PNG of 0 and 255."""
    out = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(out, format="PNG")
    return out.getvalue()


def _write_index(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    lines: list[tuple[str, ...]] = []
    counts: Counter[str] = Counter()
    for unit in selection.units():
        statuses = unit.statuses()
        counts.update(statuses.values())
        for index, row in unit.chosen:
            name = "" if statuses[index] == "failed" else f"{file_stem(unit.drop, row)}.png"
            lines.append((row.image_id, row.label, row.split.value, statuses[index], name))
    folder.write(INDEX, format_table(COLUMNS, lines))
    return dict(sorted(counts.items()))
