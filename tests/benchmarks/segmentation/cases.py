"""Images to be segmented, real and synthetic, on the pipeline's canvas."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from stages.images import Placement, letterbox
from stages.models.training.prompts import box_of
from stages.models.training.samples import HELD_OUT_SEED
from stages.models.training.scenes import draw_scene

SETS: Final = {
    "busi": "busi_breast_ultrasound",
    "brain": "brain_tumor_mri_4class",
    "chest": "chest_xray_pneumonia",
    "covid": "covid19_xray",
}
"""Folder of each set of real images."""
TEST: Final = "test"
"""Part of `clean_split` that no training sees."""


@dataclass(frozen=True, slots=True)
class Case:
    """One image and the objects that are known in it."""

    canvas: NDArray[np.uint8]
    """(S, S, 3), RGB on black."""
    placement: Placement
    truths: NDArray[np.bool_]
    """(n, S, S); n is 0 where nothing is outlined."""
    salient: NDArray[np.bool_]
    """(n,), objects that a mask without a prompt should show."""
    group: str
    """Class, or family of scenes."""

    @property
    def target(self) -> NDArray[np.bool_]:
        """What a mask without a prompt should show, (S, S)."""
        shown: NDArray[np.bool_] = self.truths[self.salient].any(axis=0)
        return shown

    def clicks(self) -> NDArray[np.float32]:
        """The pixel of each object that is farthest from its outline, (n, 1, 2), x, y; the first of equals."""
        points = np.zeros((len(self.truths), 1, 2), np.float32)
        for point, truth in zip(points, self.truths, strict=True):
            depth = distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
            point[0] = np.unravel_index(depth.argmax(), depth.shape)[::-1]
        return points

    def boxes(self) -> NDArray[np.float32]:
        """Box of each object, (n, 2, 2), x, y; the lower right corner is exclusive."""
        return np.array([box_of(truth) for truth in self.truths], np.float32).reshape(-1, 2, 2)


def set_folder(name: str) -> Path:
    """Folder of a set of real images, which need not exist: in MEDFOCUS_DATA, or beside the checkout."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    return Path(os.environ.get("MEDFOCUS_DATA", beside)) / SETS[name]


def held_out_rows(name: str) -> list[dict[str, str]]:
    """Rows of a set's index that belong to the test part, in order; of an outlined set those with an object.

    Raises
    ------
    FileNotFoundError
        If the set is not here.
    """
    with (set_folder(name) / "index.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["clean_split"] == TEST]
    return [row for row in rows if float(row.get("mask_area", 1)) > 0]


def real_case(name: str, row: dict[str, str], canvas_px: int) -> Case:
    """One image of a set, with its mask where it has one.

    Parameters
    ----------
    name : str
        One of `SETS`.
    row : dict[str, str]
        One of `held_out_rows`.
    canvas_px : int
        S, in pixels.

    Returns
    -------
    Case
        With one object, or none.
    """
    with Image.open(set_folder(name) / row["file"]) as image:
        canvas, placement = letterbox(np.asarray(image.convert("RGB")), canvas_px)
    truths = np.zeros((0, canvas_px, canvas_px), dtype=bool)
    if row.get("mask"):
        with Image.open(set_folder(name) / row["mask"]) as outlined:
            truths = letterbox(np.asarray(outlined.convert("L")) > 0, canvas_px)[0][None]
    return Case(canvas, placement, truths, np.ones(len(truths), dtype=bool), row["class"])


def synthetic_cases(n: int, canvas_px: int) -> Iterator[Case]:
    """Scenes that no training has seen.

    Parameters
    ----------
    n : int
        Number of scenes.
    canvas_px : int
        S, in pixels.

    Yields
    ------
    Case
        Lesions are salient; in a scene without a lesion every object is.
    """
    for number in range(n):
        scene = draw_scene(HELD_OUT_SEED, number, canvas_px)
        canvas, placement = letterbox(scene.image, canvas_px)
        truths = np.stack([letterbox(mask, canvas_px)[0] for mask in scene.masks])
        lesions = np.array([kind == "lesion" for kind in scene.kinds])
        yield Case(canvas, placement, truths, lesions if lesions.any() else ~lesions, scene.family)
