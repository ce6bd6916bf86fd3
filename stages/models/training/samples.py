"""Batches for training: the same seed and step give the same images, views and prompts, on every machine."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from manifests.errors import UsageError
from stages.models.training.augment import Labelled, View, random_view
from stages.models.training.prompts import click_beside, click_inside, jittered_box
from stages.models.training.scenes import draw_scene

HELD_OUT_SEED: Final = 2**31 - 1
"""Seed of the scenes that no training sees."""
CLICKS: Final = 4
BOXES: Final = 4
BESIDE: Final = 2
UNPROMPTED: Final = 1
"""Prompts of each kind for one image of a batch."""
STRIDE: Final = 4
"""Pixels of the canvas for one cell of the model's masks, along each side."""


class Prompts(NamedTuple):
    """P prompts of one kind on the images of a batch."""

    image: Tensor
    """(P,) int64, index of the image in the batch."""
    points: Tensor
    """(P, n, 2) float32, x, y in pixels of the canvas."""
    truth: Tensor
    """(P, S / 4, S / 4) float32, share of each cell that the object covers; (0, ...) where no object is meant."""


class Batch(NamedTuple):
    """B images with prompts of four kinds."""

    canvases: Tensor
    """(B, S, S, 3) uint8."""
    clicks: Prompts
    boxes: Prompts
    beside: Prompts
    """Clicks beside every object."""
    unprompted: Prompts


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps of training at one size of image."""

    image_px: int
    steps: int
    images: int
    """Images in a step."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What is shown, and how exactly it is pointed at."""

    labelled_share: float = 0.0
    """How often an image of the outlined set is shown instead of a scene, 0..1."""
    exact_boxes: float = 0.4
    """Share of boxes without jitter."""


class Samples(Dataset[Batch]):
    """Endless scenes and, in part, labelled images; indexed by step.

    Parameters
    ----------
    phases : Sequence[Phase]
        One after the other.
    seed : int
        Of all that is random.
    labelled : Sequence[Labelled]
        Real images; may be empty.
    mixture : Mixture
        Shares of images and boxes.
    """

    def __init__(self, phases: Sequence[Phase], seed: int, labelled: Sequence[Labelled], mixture: Mixture) -> None:
        if seed == HELD_OUT_SEED:
            raise UsageError(f"Seed {seed} belongs to the scenes that are held out.", "Take another seed.")
        self._phases = tuple(phases)
        self._seed = seed
        self._labelled = labelled
        self._share = mixture.labelled_share if labelled else 0.0
        self._exact_boxes = mixture.exact_boxes

    def __len__(self) -> int:
        return sum(p.steps for p in self._phases)

    def phase(self, step: int) -> Phase:
        """Phase of a step.

        Raises
        ------
        IndexError
            If the training is over by then.
        """
        left = step
        for phase in self._phases:
            if left < phase.steps:
                return phase
            left -= phase.steps
        raise IndexError(f"step {step} of {len(self)}")

    def __getitem__(self, step: int) -> Batch:
        phase = self.phase(step)
        views, streams = [], []
        for k in range(phase.images):
            rng = np.random.default_rng([self._seed, step, k])
            views.append(random_view(self._draw(phase.image_px, rng), phase.image_px, rng))
            streams.append(rng)
        return assemble(views, streams, self._exact_boxes)

    def _draw(self, image_px: int, rng: np.random.Generator) -> Labelled:
        if rng.random() < self._share:
            return self._labelled[int(rng.integers(len(self._labelled)))]
        scene = draw_scene(self._seed, int(rng.integers(2**53)), image_px)
        lesions = tuple(kind == "lesion" for kind in scene.kinds)
        return Labelled(scene.image, scene.masks, lesions if any(lesions) else (True,) * len(lesions))


def assemble(views: Sequence[View], streams: Sequence[np.random.Generator], exact_boxes: float) -> Batch:
    """Draw prompts on every view.

    Parameters
    ----------
    views : Sequence[View]
        At least one; all of one size.
    streams : Sequence[numpy.random.Generator]
        One for each view.
    exact_boxes : float
        Share of boxes without jitter, 0..1.

    Returns
    -------
    Batch
        A view without an object has clicks beside objects alone.
    """
    kinds = _Drawn(), _Drawn(), _Drawn(), _Drawn()
    clicks, boxes, beside, unprompted = kinds
    side = views[0].canvas.shape[0]
    for index, (view, rng) in enumerate(zip(views, streams, strict=True)):
        for _ in range(CLICKS if len(view.masks) else 0):
            mask = view.masks[int(rng.integers(len(view.masks)))]
            clicks.add(index, click_inside(mask, rng)[None], mask)
        for _ in range(BOXES if len(view.masks) else 0):
            mask = view.masks[int(rng.integers(len(view.masks)))]
            boxes.add(index, jittered_box(mask, rng, exact_boxes), mask)
        for _ in range(BESIDE):
            point = click_beside(view.masks[:, ::STRIDE, ::STRIDE], view.content[::STRIDE, ::STRIDE], rng)
            if point[0] >= 0:
                beside.add(index, point[None] * STRIDE, None)
        salient = np.flatnonzero(view.salient)
        for _ in range(UNPROMPTED if len(salient) else 0):
            unprompted.add(index, np.zeros((1, 2), np.float32), view.masks[int(rng.choice(salient))])
    canvases = torch.from_numpy(np.stack([v.canvas for v in views]))
    return Batch(canvases, *(kind.prompts(side, corners) for kind, corners in zip(kinds, (1, 2, 1, 1), strict=True)))


class _Drawn:
    """Prompts of one kind, one by one."""

    def __init__(self) -> None:
        self._image: list[int] = []
        self._points: list[NDArray[np.float32]] = []
        self._truth: list[NDArray[np.bool_]] = []

    def add(self, image: int, points: NDArray[np.float32], truth: NDArray[np.bool_] | None) -> None:
        self._image.append(image)
        self._points.append(points)
        if truth is not None:
            self._truth.append(truth)

    def prompts(self, side: int, n_points: int) -> Prompts:
        points = np.stack(self._points) if self._points else np.zeros((0, n_points, 2), np.float32)
        truth = np.stack(self._truth) if self._truth else np.zeros((0, side, side), dtype=bool)
        shares = F.avg_pool2d(torch.from_numpy(truth).float()[:, None], STRIDE)[:, 0] if len(truth) else None
        empty = torch.zeros((0, side // STRIDE, side // STRIDE))
        return Prompts(
            torch.tensor(self._image, dtype=torch.int64),
            torch.from_numpy(points),
            empty if shares is None else shares,
        )


def read_labelled(folder: Path, split: str) -> tuple[Labelled, ...]:
    """Read the images of one split of an outlined set.

    Parameters
    ----------
    folder : Path
        With an `index.csv` that has the columns file, mask and clean_split.
    split : str
        Value of clean_split to take; all other rows stay unread.

    Returns
    -------
    tuple[Labelled, ...]
        Images whose mask is empty have no object.

    Raises
    ------
    UsageError
        If the index is missing, lacks a column, or has no such row, or an image and its mask differ in size.
    """
    index = folder / "index.csv"
    if not index.is_file():
        raise UsageError(f"{index} does not exist.", "Name the folder of an outlined set.")
    with index.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    missing = {"file", "mask", "clean_split"} - set(rows[0] if rows else ())
    if missing:
        raise UsageError(f"{index} has no column {', '.join(sorted(missing))}.", "Name the folder of an outlined set.")
    chosen = [row for row in rows if row["clean_split"] == split]
    if not chosen:
        raise UsageError(f"{index} has no row of split {split}.", "See its column clean_split.")
    return tuple(_read(folder / row["file"], folder / row["mask"]) for row in chosen)


def _read(image_path: Path, mask_path: Path) -> Labelled:
    with Image.open(image_path) as image, Image.open(mask_path) as outlined:
        pixels, mask = np.asarray(image.convert("RGB")), np.asarray(outlined.convert("L")) > 0
    if pixels.shape[:2] != mask.shape:
        raise UsageError(f"{mask_path} is {mask.shape}, its image {pixels.shape[:2]}.", "Outline it anew.")
    masks = mask[None] if mask.any() else np.zeros((0, *mask.shape), dtype=bool)
    return Labelled(pixels, masks, (True,) * len(masks))
