"""Synthetic medical-like scenes with the outlines of their objects, for training and for tests without real images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import find_objects, label

from stages.models.training.scene_drawing import Placed, Sheet
from stages.models.training.scene_families import FAMILIES

SMALLEST: Final = 0.001
LARGEST: Final = 0.9
"""Smallest and largest object, as a share of the image."""
MOST_OBJECTS: Final = 12
LETTERS: Final = "ABCDEFHIKLMNOPRSTUVWXYZ0123456789."


@dataclass(frozen=True, slots=True)
class Scene:
    """An image whose objects are known."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB; grey scenes have three equal channels."""
    masks: NDArray[np.bool_]
    """(n, H, W), the visible part of each object; 1 <= n <= `MOST_OBJECTS`."""
    kinds: tuple[str, ...]
    """For each object `organ`, `lesion`, `part` (inside another object) or `group` (several pieces)."""
    family: str
    """One of `FAMILIES`."""


def draw_scene(seed: int, number: int, side_px: int) -> Scene:
    """Draw a scene; the same arguments give the same pixels, another side the same picture at another size.

    Parameters
    ----------
    seed, number : int
        Together they decide all; not negative.
    side_px : int
        Long side, in pixels; at least 64.

    Returns
    -------
    Scene
        Its aspect is between 0.6 and 1.
    """
    attempt = 0
    while True:
        scene = _draw(np.random.default_rng([seed, number, attempt]), side_px)
        if len(scene.masks):
            return scene
        attempt += 1


def _draw(rng: np.random.Generator, side_px: int) -> Scene:
    shares = np.array([share for share, _, _ in FAMILIES.values()])
    family = list(FAMILIES)[int(rng.choice(len(shares), p=shares / shares.sum()))]
    _, channels, draw = FAMILIES[family]
    if family == "regions" and rng.random() < 0.25:
        channels = 3
    short = round(side_px * rng.uniform(0.6, 1))
    shape = (short, side_px) if rng.random() < 0.75 else (side_px, short)
    sheet = Sheet(np.zeros((*shape, channels), np.float32))
    draw(sheet, rng)
    image = _finished(sheet, rng)
    kept = [p for p in sheet.placed if _restrict(p)]
    if len(kept) > MOST_OBJECTS:
        kept = [kept[k] for k in sorted(rng.choice(len(kept), MOST_OBJECTS, replace=False))]
    masks = np.stack([p.mask for p in kept]) if kept else np.zeros((0, *shape), dtype=bool)
    return Scene(image, masks, tuple(p.kind for p in kept), family)


def _restrict(placed: Placed) -> bool:
    """Keep the largest piece of an object, and say whether it is of a size to be outlined."""
    if not placed.mask.any():
        return False
    if placed.kind != "group":
        pieces, n = label(placed.mask)
        if n > 1:
            placed.mask = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    (rows, columns) = find_objects(placed.mask.astype(np.uint8))[0]
    thin = min(rows.stop - rows.start, columns.stop - columns.start) < 0.02 * min(placed.mask.shape)
    return not thin and SMALLEST <= placed.mask.mean() <= LARGEST


def _finished(sheet: Sheet, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Window, blur, noise, marks and artefacts of files, then eight bits."""
    pixels = sheet.pixels
    low, high = np.percentile(pixels[::4, ::4], (0.5, 99.5)).astype(np.float32)
    stretch = np.float32(rng.uniform(0, 1))
    pixels = pixels * (1 - stretch) + stretch * (pixels - low) / max(high - low, np.float32(0.05))
    noise = rng.uniform(0, 0.05) * rng.standard_normal((*sheet.shape, 1), dtype=np.float32)
    eight = np.clip((pixels + noise) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(eight.repeat(3, axis=2) if eight.shape[2] == 1 else eight)
    blur, coarse, quality = rng.random(), rng.random(), rng.random()
    if blur < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.001, 0.004) * sheet.unit))
    if coarse < 0.2:
        size = image.size
        factor = rng.uniform(0.35, 0.8)
        smaller = image.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BILINEAR)
        image = smaller.resize(size, Image.Resampling.BILINEAR)
    if rng.random() < 0.3:
        _write_marks(image, rng)
    if quality < 0.2:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 80)))
        image = Image.open(file)
    return np.asarray(image.convert("RGB"))


def _write_marks(image: Image.Image, rng: np.random.Generator) -> None:
    """Burn letters and crosses in, as scanners and their users do."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    shade = (int(rng.integers(150, 256)),) * 3
    for _ in range(rng.integers(1, 4)):
        text = "".join(rng.choice(list(LETTERS), int(rng.integers(1, 9))))
        at = (rng.uniform(0, 0.8) * width, rng.choice([rng.uniform(0, 0.06), rng.uniform(0.88, 0.95)]) * height)
        pen.text(at, text, fill=shade, font_size=max(6.0, rng.uniform(0.025, 0.06) * height))
    for _ in range(rng.integers(0, 3)):
        x, y, arm = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.008, 0.02) * height
        pen.line((x - arm, y, x + arm, y), fill=shade)
        pen.line((x, y - arm, x, y + arm), fill=shade)
