"""Kinds of scenes: ultrasound, MRI, X-ray, colour images, and plain regions of texture.

Ranges are wide on purpose: a model that has seen more than reality holds learns outlines, not appearances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import Image

from stages.models.training.scene_drawing import Floats, Outline, Placed, Sheet, blurred, fractal, smooth

Generator = np.random.Generator


def ultrasound(sheet: Sheet, rng: Generator) -> None:
    """Layers of tissue with lesions; the speckle comes last, so that it runs over every edge."""
    height, width = sheet.extent
    y, x = sheet.grid()
    wavy = (
        y + np.float32(rng.uniform(0.01, 0.06)) * smooth(rng, sheet.shape, 4) + np.float32(rng.uniform(-0.1, 0.1)) * x
    )
    echo = np.full(sheet.shape, rng.uniform(0.1, 0.6), np.float32)
    for _ in range(rng.integers(1, 6)):
        edge, change = rng.uniform(0, height), np.float32(np.exp(rng.normal(0, 0.5)))
        echo *= 1 + (change - 1) / (1 + np.exp(np.clip((edge - wavy) / np.float32(rng.uniform(0.004, 0.03)), -30, 30)))
    echo *= np.clip(
        1 + np.float32(rng.uniform(0.02, 0.35)) * fractal(rng, sheet.shape, int(rng.integers(3, 12))), 0.1, 4
    )
    stripes = np.sin(wavy * np.float32(rng.uniform(30, 110)) + 2 * smooth(rng, sheet.shape, 6))
    echo *= 1 + np.float32(rng.uniform(0, 0.25)) * stripes
    sheet.pixels[..., 0] = np.clip(echo, 0.02, 1.5)
    for _ in range(rng.integers(0, 7)):
        lobule = _anywhere(sheet, rng, rng.uniform(0.03, 0.2), 0.15)
        sheet.paint(rng.uniform(0.2, 0.6) * sheet.inside(lobule, rng.uniform(0.02, 0.08)), rng.uniform(0.05, 0.8))
    for _ in range(1 + (rng.random() < 0.25) + (rng.random() < 0.1)):
        _echo_lesion(sheet, rng)
    echo = sheet.pixels[..., 0] * np.exp(-np.float32(rng.uniform(0, 1.2)) * y)
    echo *= np.clip(1 + np.float32(rng.uniform(0, 0.25)) * smooth(rng, sheet.shape, 3), 0.2, 3)
    gain = np.float32(np.exp(rng.uniform(1.5, 4)))
    grey = np.log1p(gain * echo * _speckle(sheet, rng)) / np.log1p(gain * np.float32(rng.uniform(0.9, 2.2)))
    sheet.pixels[..., 0] = np.clip(grey - np.float32(rng.uniform(0, 0.15)), 0, 1)
    if rng.random() < 0.25:
        apex, spread = -rng.uniform(0.3, 1.0), rng.uniform(0.35, 0.7)
        outside = (np.abs(np.arctan2(x - np.float32(width / 2), y - np.float32(apex))) > spread).astype(np.float32)
        sheet.paint(outside, 0.0)
        sheet.hide(outside)


def _echo_lesion(sheet: Sheet, rng: Generator) -> None:
    """A lesion with its own echo and texture, and perhaps a rim, and a shadow or brighter tissue below."""
    radius = float(np.exp(rng.uniform(np.log(0.045), np.log(0.36))))
    rough = rng.choice([0.03, 0.1, 0.22, 0.35])
    outline = _anywhere(sheet, rng, radius, rough, aspect=rng.uniform(0.45, 1.1), tilt=rng.normal(0, 0.35))
    soft = min(float(np.exp(rng.uniform(np.log(0.003), np.log(0.05)))), radius / 2)
    coverage = sheet.inside(outline, soft)
    around = float(sheet.pixels[..., 0][coverage > 0.5].mean()) if (coverage > 0.5).any() else 0.3
    kind = rng.random()
    ranges = ((0.0, 0.05), (0.05, 0.4), (0.4, 0.65), (1.8, 3.0))
    low, high = ranges[int(np.searchsorted([0.2, 0.78, 0.9], kind))]
    own = 1 + np.float32(rng.uniform(0.05, 0.7)) * fractal(rng, sheet.shape, int(rng.integers(6, 40)))
    if rng.random() < 0.3:
        rim = sheet.inside(outline.scaled(1 + rng.uniform(0.05, 0.25)), soft * 2) - coverage
        sheet.paint(np.clip(rim, 0, 1) * np.float32(rng.uniform(0.3, 0.9)), around * rng.uniform(1.3, 2.5))
    placed = sheet.place(coverage, "lesion")
    sheet.paint(coverage, np.clip(around * rng.uniform(low, high) * own, 0, 2)[..., None])
    if rng.random() < 0.55:
        below = ((np.cumsum(placed.mask, axis=0) > 0) & ~placed.mask).astype(np.float32)
        fade = np.exp(-np.float32(rng.uniform(0.5, 4)) * np.maximum(sheet.grid()[0] - np.float32(outline.center[0]), 0))
        change = rng.uniform(-0.75, 0.9) * blurred(below, rng.uniform(0.01, 0.05)) * fade
        sheet.pixels[..., 0] *= np.where(placed.mask, 1, np.clip(1 + change, 0.05, 3))


def _speckle(sheet: Sheet, rng: Generator) -> Floats:
    """Magnitude of a complex Gaussian field whose grain is longer across the beam, mean 1."""
    rows, columns = (round(side * rng.uniform(110, 330)) for side in sheet.extent)
    columns = max(8, round(columns * rng.uniform(0.45, 1.0)))
    looks = np.zeros(sheet.shape, np.float32)
    for _ in range(rng.integers(2, 7)):
        parts = rng.standard_normal((2, rows + 1, columns + 1), dtype=np.float32)
        # Each look on a lattice of its own: enlarged noise is weaker between the cells, and that pattern would show.
        left, upper = rng.random(2)
        box, size = (left, upper, left + columns, upper + rows), sheet.shape[::-1]
        wide = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC, box=box)) for p in parts]
        looks += np.hypot(*wide)
    return np.asarray(looks / looks.mean())


def mri(sheet: Sheet, rng: Generator) -> None:
    """A head or another body part in black, with tissue, ventricles and lesions of a core and a rim."""
    height, width = sheet.extent
    center = (height / 2 + rng.normal(0, 0.02), width / 2 + rng.normal(0, 0.02))
    head = Outline.draw(rng, center, rng.uniform(0.3, 0.46), 0.04, rng.uniform(0.75, 1.3))
    sheet.pixels[..., 0] = rng.uniform(0, 0.06)
    tone = rng.uniform(0.3, 0.7)
    outer = sheet.inside(head, 0.01)
    body = sheet.place(outer, "organ")
    sheet.paint(outer, rng.uniform(0.4, 1.0))
    shrink = rng.uniform(0.8, 0.93)
    skull = sheet.inside(head.scaled(shrink + rng.uniform(0.02, 0.06)), 0.01)
    sheet.paint(skull, rng.uniform(0.02, 0.35))
    inner = sheet.inside(head.scaled(shrink), rng.uniform(0.005, 0.015))
    folds = np.abs(fractal(rng, sheet.shape, int(rng.integers(8, 20)), 2)) < rng.uniform(0.15, 0.5)
    tissue = tone + rng.uniform(-0.25, 0.25) * folds + np.float32(0.03) * fractal(rng, sheet.shape, 24)
    brain = sheet.place(inner, "organ", body)
    sheet.paint(inner, np.clip(tissue, 0.05, 1).astype(np.float32)[..., None])
    dark = rng.random() < 0.6
    if rng.random() < 0.7:
        fluid, size = rng.uniform(0, 0.12) if dark else rng.uniform(0.8, 1), rng.uniform(0.03, 0.1)
        for side in (-1, 1):
            gap = side * size * rng.uniform(0.7, 1.2)
            ventricle = Outline.draw(rng, (center[0] + rng.normal(0, 0.02), center[1] + gap), size, 0.25, 1.8)
            covered = sheet.inside(ventricle, 0.008) * inner
            sheet.place(covered, "part", brain)
            sheet.paint(covered, fluid)
    for _ in range(rng.integers(0, 3)):
        _ringed_lesion(sheet, rng, head, inner, tone)
    _bias(sheet, rng, 0.3)


def _ringed_lesion(sheet: Sheet, rng: Generator, head: Outline, inner: Floats, tone: float) -> None:
    """A lesion inside an organ: a rim of oedema around a core, or a core alone."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.65) * head.radius
    center = (head.center[0] + reach * np.sin(angle) * head.aspect, head.center[1] + reach * np.cos(angle))
    core = Outline.draw(rng, center, rng.uniform(0.03, 0.16), rng.uniform(0.03, 0.25), rng.uniform(0.6, 1.4))
    whole = None
    if rng.random() < 0.5:
        edema = sheet.inside(core.scaled(rng.uniform(1.3, 2.0)), rng.uniform(0.006, 0.03)) * inner
        whole = sheet.place(edema, "lesion")
        sheet.paint(edema * np.float32(rng.uniform(0.6, 1)), _apart(rng, tone, 0.12, 0.3))
    covered = sheet.inside(core, rng.uniform(0.004, 0.03)) * inner
    sheet.place(covered, "lesion" if whole is None else "part", whole)
    own = _apart(rng, tone, 0.2, 0.5) + np.float32(rng.uniform(0, 0.12)) * fractal(rng, sheet.shape, 16)
    sheet.paint(covered, np.clip(own, 0, 1)[..., None])


def xray(sheet: Sheet, rng: Generator) -> None:
    """A chest: two lungs, heart, spine, ribs, clavicles, and nodules or shadows in the lungs."""
    height, width = sheet.extent
    y, x = sheet.grid()
    sheet.pixels[..., 0] = rng.uniform(0.5, 0.85) + np.float32(0.05) * smooth(rng, sheet.shape, 4)
    middle, top = width / 2 + rng.normal(0, 0.04), height * rng.uniform(0.12, 0.25)
    reach, long = width * rng.uniform(0.18, 0.26), height * rng.uniform(0.22, 0.36)
    air, soft = rng.uniform(0.12, 0.38), rng.uniform(0.008, 0.03)
    lungs = []
    for side in (-1, 1):
        shape = Outline.draw(
            rng, (top + long, middle + side * reach), reach * rng.uniform(0.7, 0.95), 0.06, long / reach
        )
        shape = Outline(shape.center, shape.radius, shape.aspect, side * rng.uniform(0.0, 0.15), shape.waves)
        floor = (
            shape.center[0] + long * rng.uniform(0.55, 0.9) + np.float32(1.2) * (x - np.float32(shape.center[1])) ** 2
        )
        above = 1 / (1 + np.exp(np.clip((y - floor) / np.float32(soft), -30, 30)))
        covered = sheet.inside(shape, soft) * above
        lungs.append(sheet.place(covered, "organ"))
        texture = air + np.float32(rng.uniform(0.01, 0.05)) * fractal(rng, sheet.shape, 20)
        sheet.paint(covered * np.float32(rng.uniform(0.75, 1)), texture[..., None])
    for _ in range(rng.integers(0, 4)):
        lung = lungs[int(rng.integers(2))].mask
        spot = _inside_of(sheet, rng, lung, rng.uniform(0.025, 0.12))
        shadow = sheet.inside(spot, rng.uniform(0.01, 0.05)) * lung
        sheet.paint(shadow * np.float32(rng.uniform(0.5, 1)), air + rng.uniform(0.15, 0.4))
        sheet.placed.append(Placed(shadow > 0.5, "lesion", None))
    side = 1 if rng.random() < 0.85 else -1
    at = (top + long * rng.uniform(1.1, 1.5), middle + side * rng.uniform(0.03, 0.12))
    heart = sheet.inside(Outline.draw(rng, at, rng.uniform(0.12, 0.22), 0.05, rng.uniform(0.8, 1.2)), soft)
    sheet.place(heart, "organ")
    sheet.paint(heart, rng.uniform(0.6, 0.8))
    for lesion in [p for p in sheet.placed if p.kind == "lesion"]:
        lesion.mask &= heart <= 0.5
    spine = np.exp(-(((x - np.float32(middle)) / np.float32(rng.uniform(0.03, 0.07))) ** 4)) * np.ones_like(y)
    sheet.pixels[..., 0] += np.float32(rng.uniform(0.03, 0.2)) * spine * (1 + np.float32(0.3) * np.sin(y * 60))
    strength, spacing, bend = rng.uniform(0.02, 0.14), rng.uniform(0.07, 0.12), rng.uniform(0.2, 0.9)
    arc = y + np.float32(bend) * np.abs(x - np.float32(middle)) ** 1.5 - np.float32(rng.uniform(0, 0.1))
    ribs = np.clip(np.sin(arc * np.float32(2 * np.pi / spacing)) * 2 - np.float32(rng.uniform(0.2, 1)), 0, 1)
    sheet.pixels[..., 0] += np.float32(strength) * ribs * (np.abs(x - np.float32(middle)) < 0.42 * width)
    both = lungs[0].mask | lungs[1].mask
    sheet.placed.append(Placed(both, "group", None))
    if rng.random() < 0.1:
        sheet.pixels[:] = 1 - sheet.pixels
    _bias(sheet, rng, 0.15)


def colour(sheet: Sheet, rng: Generator) -> None:
    """Skin with a spot and hairs, cells with nuclei, or a wall of the gut with a polyp."""
    ground = rng.uniform((0.5, 0.3, 0.25), (0.95, 0.75, 0.75))
    texture = fractal(rng, sheet.shape, int(rng.integers(3, 24)))
    sheet.pixels[:] = ground.astype(np.float32) + np.float32(rng.uniform(0.01, 0.06)) * texture[..., None]
    cells = rng.random() < 0.4
    base = rng.uniform(0.02, 0.08) if cells else 0.0
    shade = (
        ground * rng.uniform(0.35, 0.85, 3) if rng.random() < 0.8 else np.clip(ground * rng.uniform(1, 1.4, 3), 0, 1)
    )
    for _ in range(rng.integers(6, 18) if cells else rng.integers(1, 3)):
        radius = base * rng.uniform(0.8, 1.3) if cells else rng.uniform(0.06, 0.36)
        outline = _anywhere(sheet, rng, radius, 0.06 if cells else rng.uniform(0.04, 0.3))
        covered = sheet.inside(outline, min(rng.uniform(0.003, 0.03), radius / 3))
        spot = sheet.place(covered, "organ" if cells else "lesion")
        own = shade + rng.normal(0, 0.03, 3) + rng.uniform(0, 0.1) * fractal(rng, sheet.shape, 12)[..., None]
        sheet.paint(covered, np.clip(own, 0, 1).astype(np.float32))
        if rng.random() < (0.8 if cells else 0.4):
            core = sheet.inside(outline.scaled(rng.uniform(0.35, 0.65)), 0.006)
            sheet.place(core, "part", spot)
            sheet.paint(core, (shade * rng.uniform(0.4, 0.8)).astype(np.float32))
    for _ in range(rng.integers(0, 12) if not cells and rng.random() < 0.4 else 0):
        _hair(sheet, rng)
    if rng.random() < 0.25:
        y, x = sheet.grid()
        far = np.hypot(y - np.float32(sheet.extent[0] / 2), x - np.float32(sheet.extent[1] / 2)) > rng.uniform(0.5, 0.6)
        sheet.paint(far.astype(np.float32), 0.0)
        sheet.hide(far.astype(np.float32))
    _bias(sheet, rng, 0.2)


def _hair(sheet: Sheet, rng: Generator) -> None:
    y, x = sheet.grid()
    angle, at, bend = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9, 2), rng.normal(0, 0.6)
    along = (x - np.float32(at[1])) * np.float32(np.cos(angle)) + (y - np.float32(at[0])) * np.float32(np.sin(angle))
    across = (y - np.float32(at[0])) * np.float32(np.cos(angle)) - (x - np.float32(at[1])) * np.float32(np.sin(angle))
    thin = np.abs(across + np.float32(bend) * along**2) < rng.uniform(0.0015, 0.004)
    sheet.paint((thin & (np.abs(along) < 0.5)).astype(np.float32) * np.float32(0.8), rng.uniform(0, 0.25))


def regions(sheet: Sheet, rng: Generator) -> None:
    """Shapes of any kind on a ground of any texture, from hardly visible to plain, some with parts, some hidden."""
    tone = rng.uniform(0.1, 0.9)
    ground = tone + np.float32(rng.uniform(0, 0.2)) * fractal(rng, sheet.shape, int(rng.integers(3, 40)))
    sheet.pixels[:] = np.clip(ground, 0, 1)[..., None] * rng.uniform(0.8, 1.1, sheet.pixels.shape[2])
    for _ in range(rng.integers(1, 9)):
        radius = float(np.exp(rng.uniform(np.log(0.035), np.log(0.33))))
        outline = _anywhere(sheet, rng, radius, rng.choice([0.0, 0.08, 0.2, 0.4]), aspect=rng.uniform(0.3, 1.4))
        covered = sheet.inside(outline, min(float(np.exp(rng.uniform(-6, -3))), radius / 2))
        if rng.random() < 0.2:
            covered = covered * (smooth(rng, sheet.shape, int(rng.integers(5, 14))) > rng.uniform(-1, 0))
        value = _apart(rng, float(sheet.pixels[covered > 0.5].mean()) if (covered > 0.5).any() else tone, 0.07, 0.5)
        own = value + np.float32(rng.uniform(0, 0.2)) * fractal(rng, sheet.shape, int(rng.integers(4, 60)))
        shape = sheet.place(covered, "organ")
        sheet.paint(covered, np.clip(own, 0, 1)[..., None] * rng.uniform(0.85, 1.1, sheet.pixels.shape[2]))
        if rng.random() < 0.3:
            core = sheet.inside(outline.scaled(rng.uniform(0.3, 0.7)), 0.008) * covered
            sheet.place(core, "part", shape)
            sheet.paint(core, _apart(rng, value, 0.1, 0.4))
    _bias(sheet, rng, 0.3)


FAMILIES: Final[Mapping[str, tuple[float, int, Callable[[Sheet, Generator], None]]]] = {
    "ultrasound": (0.4, 1, ultrasound),
    "mri": (0.15, 1, mri),
    "xray": (0.15, 1, xray),
    "colour": (0.12, 3, colour),
    "regions": (0.18, 1, regions),
}
"""Share of the scenes, channels, and what draws them."""


def _anywhere(
    sheet: Sheet, rng: Generator, radius: float, rough: float, aspect: float | None = None, tilt: float | None = None
) -> Outline:
    """An outline whose centre may be anywhere, also near the border."""
    height, width = sheet.extent
    center = (rng.uniform(0.06, 0.94) * height, rng.uniform(0.06, 0.94) * width)
    drawn = Outline.draw(rng, center, radius, rough, rng.uniform(0.5, 1.0) if aspect is None else aspect)
    return drawn if tilt is None else Outline(drawn.center, drawn.radius, drawn.aspect, tilt, drawn.waves)


def _inside_of(sheet: Sheet, rng: Generator, mask: np.ndarray, radius: float) -> Outline:
    """An outline whose centre lies in a mask, if that has a pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    share = rng.uniform(0.15, 0.85, 2)
    at = [
        float(line[int(s * (len(line) - 1))]) / sheet.unit if len(line) else 0.5
        for line, s in zip((rows, columns), share, strict=True)
    ]
    return Outline.draw(rng, (at[0], at[1]), radius, rng.uniform(0.02, 0.3), rng.uniform(0.6, 1.4))


def _apart(rng: Generator, tone: float, least: float, most: float) -> float:
    """A tone that differs from another by `least` to `most`, on the side where there is room."""
    change = rng.uniform(least, most) * (1 if rng.random() < 0.5 else -1)
    return tone + change if 0 <= tone + change <= 1 else tone - change


def _bias(sheet: Sheet, rng: Generator, most: float) -> None:
    """Uneven gain."""
    gain = 1 + np.float32(rng.uniform(0, most)) * smooth(rng, sheet.shape, 2)
    sheet.pixels *= np.clip(gain, 0.3, 2)[..., None]
