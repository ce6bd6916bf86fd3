"""What scenes are drawn with: smooth noise, soft outlines, and a sheet that keeps each object's visible mask.

All lengths are shares of the sheet's short side, and random numbers are drawn in the same order at every size, so that
a scene is the same picture at 256 and at 512 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]

WAVES: Final = 512
"""Directions in which an outline's radius is tabulated."""


def smooth(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Floats:
    """Smooth random field with mean 0 and standard deviation about 1; `cells` grains along each side."""
    coarse = rng.standard_normal((cells + 2, cells + 2), dtype=np.float32)
    wide = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    enlarged = np.asarray(wide, dtype=np.float32)
    return np.asarray((enlarged - enlarged.mean()) / max(float(enlarged.std()), 1e-3), dtype=np.float32)


def fractal(rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int = 3) -> Floats:
    """Sum of smooth fields, each twice as fine and 0.6 times as strong as the one before."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += np.float32(0.6**octave) * smooth(rng, shape, min(cells * 2**octave, 200))
    return total / max(float(total.std()), 1e-3)


def blurred(values: Floats, sigma: float) -> Floats:
    """Wide blur of a field by a share of its short side, through a small copy."""
    side = max(4, round(1.2 / sigma))
    small = Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((values.shape[1], values.shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed outline around a centre: an ellipse whose radius is modulated by waves."""

    center: tuple[float, float]
    """Row and column, in short sides."""
    radius: float
    aspect: float
    """Half axis along the rows over that along the columns."""
    tilt: float
    """Radians."""
    waves: Floats
    """Radius by direction, as a share of the ellipse's, (WAVES,)."""

    @classmethod
    def draw(
        cls, rng: np.random.Generator, center: tuple[float, float], radius: float, rough: float, aspect: float
    ) -> Outline:
        """Draw an outline; `rough` is about the standard deviation of its waves."""
        angle = np.linspace(0, 2 * np.pi, WAVES, endpoint=False, dtype=np.float32)
        decay, waves = rng.uniform(0.6, 1.6), np.ones(WAVES, np.float32)
        for k in range(2, 13):
            strength = np.float32(rough * rng.normal() / (k - 1) ** decay)
            waves += strength * np.cos(k * angle + np.float32(rng.uniform(0, 2 * np.pi)))
        return cls(center, radius, aspect, rng.uniform(0, np.pi), np.clip(waves, 0.3, 2.0))

    def scaled(self, factor: float) -> Outline:
        """Return the same shape, larger or smaller, around the same centre."""
        return Outline(self.center, self.radius * factor, self.aspect, self.tilt, self.waves)


@dataclass(slots=True)
class Placed:
    """An object on the sheet."""

    mask: NDArray[np.bool_]
    kind: str
    whole: Placed | None
    """What the object is a part of."""


@dataclass(slots=True)
class Sheet:
    """A picture in the making, with the visible masks of its objects."""

    pixels: Floats
    """(H, W, C), 0..1 when finished; C is 1 or 3."""
    placed: list[Placed] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def unit(self) -> int:
        """Short side, in pixels."""
        return min(self.shape)

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width, in short sides."""
        return self.shape[0] / self.unit, self.shape[1] / self.unit

    def grid(self) -> tuple[Floats, Floats]:
        """Row (H, 1) and column (1, W) of each pixel, in short sides."""
        rows, columns = self.shape
        y, x = np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32)
        half, unit = np.float32(0.5), np.float32(self.unit)
        return (y[:, None] + half) / unit, (x[None] + half) / unit

    def inside(self, outline: Outline, softness: float) -> Floats:
        """Coverage by an outline, (H, W), 0..1; a half lies on the outline, `softness` is the edge's width."""
        reach = outline.radius * max(1.0, outline.aspect) * float(outline.waves.max()) + 4 * softness
        coverage = np.zeros(self.shape, np.float32)
        rows, columns = (
            slice(max(0, int((c - reach) * self.unit)), max(0, int((c + reach) * self.unit) + 2))
            for c in outline.center
        )
        y, x = self.grid()
        dy, dx = y[rows] - np.float32(outline.center[0]), x[:, columns] - np.float32(outline.center[1])
        if not dy.size or not dx.size:
            return coverage
        cos, sin = np.float32(np.cos(outline.tilt)), np.float32(np.sin(outline.tilt))
        v, u = (cos * dy - sin * dx) / np.float32(outline.aspect), sin * dy + cos * dx
        direction = (np.arctan2(v, u) * np.float32(WAVES / (2 * np.pi))).astype(np.int32) % WAVES
        depth = np.float32(outline.radius) * outline.waves[direction] - np.hypot(v, u)
        width = np.float32(max(softness, 0.5 / self.unit) / 2)
        coverage[rows, columns] = 1 / (1 + np.exp(np.clip(-depth / width, -30, 30)))
        return coverage

    def paint(self, coverage: Floats, value: Floats | float) -> None:
        """Lay a value, a number or (H, W, C or 1), over the picture where it is covered."""
        alpha = coverage[..., None]
        self.pixels += alpha * (value - self.pixels)

    def place(self, coverage: Floats, kind: str, whole: Placed | None = None) -> Placed:
        """Record an object where more than half is covered; it hides all others but those that it is a part of."""
        mask = coverage > 0.5
        above, ancestor = set(), whole
        while ancestor is not None:
            above.add(id(ancestor))
            ancestor = ancestor.whole
        for other in self.placed:
            if id(other) not in above:
                other.mask &= ~mask
        self.placed.append(Placed(mask, kind, whole))
        return self.placed[-1]

    def hide(self, coverage: Floats) -> None:
        """Take out of every mask what something without a mask covers."""
        for other in self.placed:
            other.mask &= coverage <= 0.5
