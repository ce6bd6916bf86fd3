"""Synthetic ultrasound-like images for the demo: a lesion's shape and texture make its class, all else is chance.

Each image is an organ of speckle with one lesion in it. Class decides how the lesion's outline and echo texture are
drawn; organ, gain, stripes, vessels and burned-in marks come from a random stream of their own that knows no class.
Echoes are drawn as in fully developed speckle: the magnitude of a filtered complex Gaussian field, log-compressed.
Ranges are set so that the embedded models find most lesions and tell most classes apart: a demo, not a benchmark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from manifests.errors import UsageError
from manifests.types import Split

Floats = NDArray[np.float64]

SIZE_PX = (320, 256)
"""Width and height of an image, in pixels."""
COMPOUNDED = 3
"""Independent looks averaged into one image, as scanners do against speckle."""


@dataclass(frozen=True, slots=True)
class LesionClass:
    """Ranges from which one class's lesions are drawn; ranges of classes overlap."""

    lobes: tuple[int, int]
    """Waves around the outline, lowest and highest number."""
    depth: tuple[float, float]
    """Height of the waves as a share of the radius."""
    sharpness: float
    """1 for round waves; above, narrow spikes."""
    echo: tuple[float, float]
    """Mean echo as a share of the organ's."""
    patchiness: tuple[float, float]
    """Strength of the coarse texture inside."""
    patch_px: float
    """Grain of the coarse texture, in pixels."""


CLASSES: Mapping[str, LesionClass] = {
    "round": LesionClass((2, 4), (0.02, 0.13), 1.0, (0.06, 0.26), (0.05, 0.55), 7.0),
    "lobed": LesionClass((3, 7), (0.06, 0.22), 1.0, (0.06, 0.26), (0.10, 0.65), 6.0),
    "spiculated": LesionClass((6, 12), (0.06, 0.28), 2.0, (0.06, 0.26), (0.15, 0.80), 4.5),
}
"""What tells the classes apart."""


def make_phantoms(folder: Path, n_per_class: Mapping[str, int], seed: int, size_px: tuple[int, int] = SIZE_PX) -> None:
    """Write a data set of phantoms with ground-truth masks and a `labels.csv`; the same arguments give the same bytes.

    Parameters
    ----------
    folder : Path
        Created if absent; gets `images/<split>/<class>/NNN.png`, `masks/...` and `labels.csv` (columns file, label,
        split, group, mask). Files of an earlier call with the same arguments are left as they are.
    n_per_class : Mapping[str, int]
        Images of each class by split name.
    seed : int
        Seeds every image; not negative.
    size_px : tuple[int, int]
        Width and height, each at least 64 pixels.

    Raises
    ------
    UsageError
        If a split, a number or a size cannot be, or the folder holds other files.
    """
    _check(n_per_class, seed, size_px)
    files: dict[Path, bytes] = {}
    table: list[tuple[str, ...]] = [("file", "label", "split", "group", "mask")]
    for number, (split, label, name) in enumerate(_plan(n_per_class)):
        image, mask = draw_phantom(label, seed, number, size_px)
        paths = [Path(kind) / split / label / f"{name}.png" for kind in ("images", "masks")]
        files[paths[0]], files[paths[1]] = _png(image), _png(mask.astype(np.uint8) * np.uint8(255))
        table.append((paths[0].as_posix(), label, split, f"phantom-{number:04d}", paths[1].as_posix()))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    files[Path("labels.csv")] = text.getvalue().encode()
    _write(folder, files)


def draw_phantom(
    label: str, seed: int, number: int, size_px: tuple[int, int] = SIZE_PX
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw one phantom.

    Parameters
    ----------
    label : str
        One of `CLASSES`.
    seed, number : int
        Together they seed the image's two random streams: one for the lesion, one for everything else.
    size_px : tuple[int, int]
        Width and height, in pixels.

    Returns
    -------
    image : ndarray of uint8, (height, width)
        Grey values.
    mask : ndarray of bool, (height, width)
        The lesion.
    """
    nuisance, lesion = (np.random.default_rng([seed, number, stream]) for stream in (0, 1))
    scene = _Scene.draw(nuisance, size_px)
    echo = scene.organ_echo(nuisance)
    mask, texture = _lesion(CLASSES[label], lesion, scene)
    soft = gaussian_filter(mask.astype(np.float64), lesion.uniform(0.8, 2.2))
    echo = echo * (1 - soft) + scene.brightness * texture * soft
    echo *= _shadow(mask, lesion.uniform(-0.45, 0.45))
    return scene.finish(echo, nuisance), mask


@dataclass(frozen=True, slots=True)
class _Scene:
    """Everything but the lesion: drawn without knowing the class."""

    y: Floats
    """Row of each pixel, in pixels, (height, width)."""
    x: Floats
    unit: float
    """Short side, in pixels."""
    center: tuple[float, float]
    """Organ's centre: row, column."""
    radii: tuple[float, float]
    """Organ's half axes, in pixels, before the tilt."""
    tilt: float
    brightness: float
    """Mean echo of the organ."""

    @classmethod
    def draw(cls, rng: np.random.Generator, size_px: tuple[int, int]) -> _Scene:
        width, height = size_px
        y, x = np.mgrid[:height, :width].astype(np.float64)
        unit = float(min(width, height))
        center = (height * rng.uniform(0.37, 0.49), width * rng.uniform(0.42, 0.58))
        radii = (unit * rng.uniform(0.30, 0.42), unit * rng.uniform(0.40, 0.58))
        return cls(y, x, unit, center, radii, rng.uniform(-0.35, 0.35), rng.uniform(0.30, 0.55))

    def organ_distance(self) -> Floats:
        """Below 1 inside the organ, above outside."""
        dy, dx = self.y - self.center[0], self.x - self.center[1]
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return np.asarray(np.hypot((cos * dy - sin * dx) / self.radii[0], (sin * dy + cos * dx) / self.radii[1]))

    def organ_echo(self, rng: np.random.Generator) -> Floats:
        """Mean echo of every pixel: tissue layers, the organ with its capsule, and a few vessels."""
        layers = np.sin(self.y / self.unit * rng.uniform(18, 40) + _smooth(rng, self.y.shape, 25) * 1.5)
        echo = self.brightness * rng.uniform(0.65, 1.15) * (1 + 0.25 * layers)
        distance = self.organ_distance() + 0.05 * _smooth(rng, self.y.shape, 20)
        inside = 1 / (1 + np.exp((distance - 1) * 30))
        echo = echo * (1 - inside) + self.brightness * (1 + 0.18 * _smooth(rng, self.y.shape, 12)) * inside
        echo += rng.uniform(0.05, 0.22) * np.exp(-(((distance - 1) / 0.035) ** 2))
        for _ in range(rng.integers(1, 5)):
            angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.8)
            at = (
                self.center[0] + reach * self.radii[0] * np.sin(angle),
                self.center[1] + reach * self.radii[1] * np.cos(angle),
            )
            size = self.unit * rng.uniform(0.012, 0.04, 2)
            echo *= 1 - 0.8 * np.exp(-((((self.y - at[0]) / size[0]) ** 2 + ((self.x - at[1]) / size[1]) ** 2) ** 2))
        return np.asarray(echo)

    def finish(self, echo: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Speckle, attenuation with depth, stripes, log compression, the probe's fan, and burned-in marks."""
        grain = (rng.uniform(0.7, 1.1), rng.uniform(1.2, 2.0))
        looks = [gaussian_filter(rng.standard_normal((2, *echo.shape)), (0, *grain)) for _ in range(COMPOUNDED)]
        speckle = np.mean([np.hypot(*look) for look in looks], axis=0)
        signal = echo * speckle / speckle.mean() * np.exp(-rng.uniform(0.1, 0.6) * self.y / self.y.shape[0])
        signal *= 1 + rng.uniform(0, 0.25) * np.sin(self.y * 2 * np.pi / rng.uniform(9, 40) + rng.uniform(0, 6)) ** 8
        grey = np.log1p(signal * 25) / np.log1p(25 * rng.uniform(1.1, 2.2))
        apex = -self.unit * rng.uniform(0.5, 1.2)
        fan = np.abs(np.arctan2(self.x - self.x.shape[1] / 2, self.y - apex)) < rng.uniform(0.38, 0.60)
        grey = np.where(fan, grey, 0.0)
        self._burn_marks(grey, rng)
        return np.asarray(np.rint(255 * np.clip(grey, 0, 1)), dtype=np.uint8)

    def _burn_marks(self, grey: Floats, rng: np.random.Generator) -> None:
        """A depth scale at the side and letter-like blocks in one corner."""
        height, width = grey.shape
        step = int(rng.integers(14, 30))
        grey[4 : height - 4 : step, width - 7 : width - 3] = 0.9
        top, left = (int(rng.choice([5, side - 5 - span])) for side, span in ((height, 8), (width - 12, 40)))
        for letter in range(rng.integers(2, 6)):
            block = rng.random((4, 3)) < 0.6
            at = left + 8 * letter
            grey[top : top + 8, at : at + 6] = np.maximum(
                grey[top : top + 8, at : at + 6], np.kron(block, np.ones((2, 2)))
            )


def _lesion(kind: LesionClass, rng: np.random.Generator, scene: _Scene) -> tuple[NDArray[np.bool_], Floats]:
    """Outline and mean echo of a lesion inside the organ."""
    radius = scene.unit * rng.uniform(0.12, 0.21)
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    dy = scene.y - scene.center[0] - reach * scene.radii[0] * np.sin(angle)
    dx = scene.x - scene.center[1] - reach * scene.radii[1] * np.cos(angle)
    flatten = rng.uniform(0.7, 1.0)
    theta, distance = np.arctan2(dy / flatten, dx), np.hypot(dy / flatten, dx)
    lobes, phase = int(rng.integers(kind.lobes[0], kind.lobes[1] + 1)), rng.uniform(0, 2 * np.pi)
    jitter = 0.5 * np.sin(2 * theta + rng.uniform(0, 6)) + 0.4 * np.sin(3 * theta + rng.uniform(0, 6))
    wave = (0.5 + 0.5 * np.sin(lobes * theta + phase + jitter)) ** kind.sharpness
    outline = radius * (1 + rng.uniform(*kind.depth) * (2 * wave - 0.5) + 0.04 * jitter)
    patches = rng.uniform(*kind.patchiness) * _smooth(rng, scene.y.shape, kind.patch_px)
    texture = rng.uniform(*kind.echo) * np.clip(1 + patches, 0.1, 2.6)
    return np.asarray(distance < outline), texture


def _shadow(mask: NDArray[np.bool_], strength: float) -> Floats:
    """Brighter (above 0) or darker echo below the lesion."""
    above = np.cumsum(mask, axis=0) > 0
    below = gaussian_filter((above & ~mask).astype(np.float64), (6, 4))
    return np.asarray(1 + strength * below * ~mask)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma_px: float) -> Floats:
    """Smooth random field with mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.standard_normal(shape), sigma_px)
    return np.asarray((field - field.mean()) / field.std())


def _plan(n_per_class: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    for split, n in n_per_class.items():
        for label in CLASSES:
            for k in range(n):
                yield split, label, f"{k:03d}"


def _check(n_per_class: Mapping[str, int], seed: int, size_px: tuple[int, int]) -> None:
    splits = [s.value for s in Split]
    if not n_per_class or any(split not in splits or n < 1 for split, n in n_per_class.items()):
        raise UsageError(
            f"Phantoms: expected at least one image a class by split, got {dict(n_per_class)}.",
            f"Splits: {', '.join(splits)}.",
        )
    if seed < 0 or min(size_px) < 64:
        raise UsageError(f"Phantoms: seed {seed} and size {size_px} cannot be.", "Use a seed from 0, sides from 64 px.")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=6)
    return out.getvalue()


def _write(folder: Path, files: Mapping[Path, bytes]) -> None:
    there = {p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir()} if folder.exists() else set()
    foreign = sorted(there - set(files))
    if foreign:
        raise UsageError(f"The folder {folder} holds other files, such as {foreign[0]}.", "Choose an empty folder.")
    for path, content in files.items():
        target = folder / path
        if target.is_file() and target.read_bytes() == content:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
