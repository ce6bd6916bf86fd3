"""Masks, or all proposals, as COCO instances in run-length encoding, at the size of the images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from manifests.types import ImageRow, Status
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.native import native_masks, to_native
from pipeline.exporting.selection import Selection, Unit, count_statuses, file_stem

FILE = "instances.json"
REGION = "region"
"""Category of an image without a label, and of every proposal: no proposal knows a class."""
LISTS = ("images", "annotations")


def write_coco(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    """Write instances.json, unit by unit; a unit that was finished before a kill is not encoded again.

    Images that failed or fell back to the whole image are left out and counted.

    Returns
    -------
    dict[str, int]
        Images by status.
    """
    parts = []
    if not folder.has(FILE):
        categories = _categories(selection)
        for unit in selection.units():
            parts.append(folder.part(f"{unit.name}.json"))
            if not folder.has(parts[-1]):
                folder.write(parts[-1], json.dumps(_part(selection, unit, categories)).encode("ascii"))
        with folder.replacing(FILE) as partial, partial.open("x", encoding="ascii", newline="") as stream:
            _join(stream, folder, parts, _head(selection, categories))
    return count_statuses(selection)


def _categories(selection: Selection) -> dict[str, int]:
    """Id of each category by name: classes in their order, and the region last, where something needs it."""
    if selection.node.stage == "proposals":
        return {REGION: 1}
    classes = {name: number for number, name in enumerate(selection.workspace.classes, 1)}
    unlabelled = any(not row.label for _, row in selection.rows())
    return {**classes, "": len(classes) + 1} if unlabelled or not classes else classes


def _head(selection: Selection, categories: Mapping[str, int]) -> dict[str, Any]:
    """Everything of the file but images and annotations."""
    described = f"{selection.node.key} of {selection.workspace.paths.name}, by MedFocus"
    return {
        "info": {"description": described, "version": metadata.version("medfocus")},
        "licenses": [],
        "categories": [{"id": number, "name": name or REGION} for name, number in categories.items()],
    }


def _part(selection: Selection, unit: Unit, categories: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Images and annotations of one unit; ids follow from the position among all rows."""
    of_proposals = selection.node.stage == "proposals"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    statuses = unit.read("status")["status"]
    for index, row in unit.chosen:
        if statuses[index] == Status.OK:
            label = {"label": row.label} if row.label else {}
            sizes = {"width": row.width, "height": row.height}
            name = file_stem(unit.drop, row)
            number = unit.number + index + 1
            images.append({"id": number, "file_name": name, **sizes, "split": row.split.value, **label})
    for number, row, instance in (_proposals if of_proposals else _masks)(unit):
        category = categories[REGION if of_proposals else row.label]
        annotations.append({"id": number, "category_id": category, **instance})
    return {"images": images, "annotations": annotations}


def _masks(unit: Unit) -> Iterator[tuple[int, ImageRow, dict[str, Any]]]:
    """Id, image and instance of every mask that is one and has a pixel."""
    for found in native_masks(unit):
        if found.status == Status.OK and found.mask.any():
            number = unit.number + found.index + 1
            score = {} if math.isnan(found.score) else {"score": found.score}
            yield number, found.row, {"image_id": number, **encoded(found.mask), **score}


def _proposals(unit: Unit) -> Iterator[tuple[int, ImageRow, dict[str, Any]]]:
    """Id, image and instance of every kept candidate that has a pixel, best first."""
    arrays = unit.read("candidates", "candidate_scores", "placement", "status")
    most, names = arrays["candidates"].shape[1], unit.store.attributes["scores"]
    for index, row in unit.chosen:
        number = unit.number + index
        for place, scores in enumerate(arrays["candidate_scores"][index].tolist()):
            if arrays["status"][index] != Status.OK or math.isnan(scores[0]):
                continue
            canvas = np.unpackbits(arrays["candidates"][index, place], axis=-1).astype(bool)
            mask = to_native(canvas, arrays, index, row)
            if mask.any():
                told = dict(zip(names, scores, strict=True))
                told["score"] = told["predicted_iou"] * told["stability"]
                yield number * most + place + 1, row, {"image_id": number + 1, **encoded(mask), **told}


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, (H, W), as COCO's fields: run-length code, area in pixels, and the box x, y, width, height."""
    from pycocotools import mask as coco

    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")},
        "area": int(coco.area(code)),
        "bbox": [float(side) for side in coco.toBbox(code)],
        "iscrowd": 0,
    }


def _join(stream: TextIO, folder: ExportFolder, parts: list[str], head: Mapping[str, Any]) -> None:
    """Write the file from its parts, one part in memory at a time."""
    stream.write(json.dumps(head)[:-1])
    for name in LISTS:
        stream.write(f', "{name}": [')
        separator = "\n"
        for part in parts:
            for entry in json.loads((folder.root / part).read_bytes())[name]:
                stream.write(separator + json.dumps(entry))
                separator = ",\n"
        stream.write("]")
    stream.write("}\n")
