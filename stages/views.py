"""What the model is shown of one image: which part of the canvas, under which mask, and how much of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.types import ItemOutcome, Status
from stages.images import Placement, composite, content, crop_extent

CONTROLS = ("inverted", "random-box", "shuffled")
"""Views under deliberately wrong masks: if they score like `masked`, it was not the mask that helped."""
TOKEN_VIEWS = ("roi", "ring", "roi-random-box", "roi-shuffled")
"""Views that are pooled from the tokens of `original` instead of being encoded themselves."""


@dataclass(frozen=True, slots=True)
class MaskedCanvas:
    """One image of the chunk with its mask, S = canvas side."""

    position: int
    """Row of the chunk's arrays."""
    canvas: NDArray[np.uint8] | None
    """Letterboxed image, (S, S, 3); None where no asked-for view needs the source."""
    masked_image: NDArray[np.uint8]
    """What the masks stage stored, (S, S, 3)."""
    mask: NDArray[np.bool_]
    """(S, S); the whole image where its own mask was not usable."""
    placement: Placement
    donated: NDArray[np.bool_] | None = None
    """Mask of another image, fitted to this one, (S, S): that of `shuffled`; None where no view shows it."""
    seed: int = 0
    """Of the place of `random-box`; the image's own, so that it does not change with the chunk."""

    def view(self, name: str, stored: str | None) -> NDArray[np.uint8]:
        """Canvas of one encoded view, (S, S, 3) uint8.

        Parameters
        ----------
        name : str
            `original`, a mode of `stages.images.composite`, or one of `CONTROLS`, composed as `masked`.
        stored : str or None
            Mode in which `masked_image` was composed; None if that is not known.
        """
        if name == stored:
            return self.masked_image
        if self.canvas is None:
            raise ValueError(f"view {name!r} needs the source image")
        if name in ("original", "attn-bias"):
            return self.canvas
        mode = "masked" if name in CONTROLS else name
        return composite(self.canvas, self.control(name) if name in CONTROLS else self.mask, mode, self.placement)

    def control(self, name: str) -> NDArray[np.bool_]:
        """The wrong mask of a control, (S, S); the whole image where it would be empty."""
        whole = content(self.placement, len(self.mask))
        if name == "inverted":
            wrong = whole & ~self.mask
        elif name == "random-box":
            wrong = random_box(self.mask & whole, self.placement, self.seed)
        elif self.donated is not None:
            wrong = self.donated & whole
        else:
            raise ValueError(f"view {name!r} needs the mask of another image")
        return wrong if wrong.any() else whole

    def token_weights(self, name: str, resize: str, grid: tuple[int, int]) -> NDArray[np.float32]:
        """Share of each token's area that one of `TOKEN_VIEWS` counts, (rows * columns,) in [0, 1], row by row.

        Parameters
        ----------
        name : str
            Of the view.
        resize : str
            How the canvas becomes the model's square, see `model_box`.
        grid : tuple[int, int]
            Rows and columns of the tokens.
        """
        pooled, _, control = name.partition("-")
        mask = self.control(control) if control else self.mask
        return token_weights(mask, self.placement, self.box("original", resize), grid)[pooled]

    def box(self, name: str, resize: str) -> Placement:
        """Part of a view's canvas that the model sees; `crop` fills a canvas of its own, which is used whole."""
        side = self.masked_image.shape[0]
        return model_box(self.placement, side, "letterbox" if name == "crop" else resize)

    def seen(self, name: str, resize: str) -> Placement:
        """Part of the image's own canvas that the model sees of a view, padding too.

        That of `crop` is the square around what is cropped, to a pixel; it may stand over the edge of the canvas.
        """
        if name != "crop":
            return self.box(name, resize)
        side = len(self.mask)
        extent = crop_extent(self.mask & content(self.placement, side), self.placement)
        longest = max(extent.height, extent.width)
        top, left = (longest - extent.height) // 2, (longest - extent.width) // 2
        return Placement(extent.y0 - top, extent.x0 - left, longest, longest)


def donors(groups: Sequence[str], usable: NDArray[np.bool_]) -> list[int]:
    """For each image of a chunk, the image whose mask `shuffled` shows: the next one of another patient.

    A drop is ordered by the digests of its images, so the next one is any image.

    Parameters
    ----------
    groups : Sequence[str]
        group_id of each image, n.
    usable : ndarray of bool, (n,)
        Images that have a mask of their own.

    Returns
    -------
    list of int
        Positions in the chunk; an image's own where there is no other.
    """
    found = []
    for own, group in enumerate(groups):
        following = [(own + step) % len(groups) for step in range(1, len(groups))]
        found.append(next((i for i in following if usable[i] and groups[i] != group), own))
    return found


def random_box(mask: NDArray[np.bool_], placement: Placement, seed: int) -> NDArray[np.bool_]:
    """A box of a mask's area (to a row) and its extent's proportions, somewhere in the image.

    Parameters
    ----------
    mask : ndarray of bool, (S, S)
        Inside the image.
    placement : Placement
        Where the image lies in the canvas.
    seed : int
        Equal seeds give equal places.

    Returns
    -------
    ndarray of bool, (S, S)
        Empty if the mask is.
    """
    area, out = int(mask.sum()), np.zeros_like(mask)
    if not area:
        return out
    extent = [int(np.ptp(np.flatnonzero(mask.any(axis=axis)))) + 1 for axis in (1, 0)]
    height = round((area * extent[0] / extent[1]) ** 0.5)
    height = min(placement.height, max(height, -(-area // placement.width), 1))
    width = min(placement.width, max(1, round(area / height)))
    random = np.random.default_rng(seed)
    y = placement.y0 + int(random.integers(placement.height - height + 1))
    x = placement.x0 + int(random.integers(placement.width - width + 1))
    out[y : y + height, x : x + width] = True
    return out


UNIT_TOLERANCE = 1e-3
"""How far the length of a vector may be from 1."""


def judge(outcome: ItemOutcome, arrays: Mapping[str, NDArray[Any]], at: int) -> ItemOutcome:
    """Turn an image whose vectors are no directions into a failed row that holds NaN."""
    if outcome.status == Status.FAILED:
        return outcome
    floats = [array for array in arrays.values() if array.dtype.kind == "f"]
    lengths = np.linalg.norm(arrays["image"][at], axis=-1)
    if (np.abs(lengths - 1) < UNIT_TOLERANCE).all() and all(np.isfinite(array[at]).all() for array in floats):
        return outcome
    for array in floats:
        array[at] = np.nan
    detail = "the model gave a vector that is not finite or has no length"
    return ItemOutcome(outcome.row, outcome.image_id, Status.FAILED, "embedding.nonfinite", detail)


def model_box(placement: Placement, canvas_px: int, resize: str) -> Placement:
    """Part of the canvas that is squashed to the model's square.

    Parameters
    ----------
    placement : Placement
        Where the image lies in the canvas.
    canvas_px : int
        Side of the canvas, in pixels.
    resize : str
        `letterbox`: the canvas, padding and all; `squash`: the image, whatever its aspect; `crop`: the image's
        central square, as in CLIP's own preprocessing (short side to the model's side, then a centre crop).

    Returns
    -------
    Placement
        As rows and columns of the canvas; square but for `squash`.
    """
    if resize == "letterbox":
        return Placement(0, 0, canvas_px, canvas_px)
    if resize == "squash":
        return placement
    side = min(placement.height, placement.width)
    top, left = (placement.height - side) // 2, (placement.width - side) // 2
    return Placement(placement.y0 + top, placement.x0 + left, side, side)


def token_weights(
    mask: NDArray[np.bool_], placement: Placement, box: Placement, grid: tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """Share of each token's area inside the mask (`roi`), and in the image but outside the mask (`ring`).

    Parameters
    ----------
    mask : ndarray of bool, (S, S)
        Mask on the canvas.
    placement : Placement
        Where the image lies in the canvas; padding belongs to neither.
    box : Placement
        What `model_box` gave for the image.
    grid : tuple[int, int]
        Rows and columns of the tokens.

    Returns
    -------
    dict[str, ndarray of float32, (rows * columns,)]
        In [0, 1], row by row.
    """
    whole = content(placement, mask.shape[0])
    inside = cell_coverage((mask & whole)[box.slices], grid)
    return {"roi": inside, "ring": np.maximum(cell_coverage(whole[box.slices], grid) - inside, 0)}


def cell_coverage(region: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Exact share of each grid cell that a mask covers, also where cells cut pixels.

    Parameters
    ----------
    region : ndarray of bool, (H, W)
        Mask of what the model sees.
    grid : tuple[int, int]
        Rows and columns of equal cells over it.

    Returns
    -------
    ndarray of float32, (rows * columns,)
        In [0, 1], row by row.
    """
    rows, columns = (_overlap(n, cells) for n, cells in zip(region.shape, grid, strict=True))
    share: NDArray[np.float32] = np.clip(rows @ region.astype(np.float32) @ columns.T, 0, 1)
    return share.ravel()


@lru_cache(maxsize=256)
def _overlap(pixels: int, cells: int) -> NDArray[np.float32]:
    """Share of each of `cells` equal intervals that each pixel fills, (cells, pixels); rows sum to one."""
    edges = np.arange(cells + 1) * (pixels / cells)
    left = np.maximum(edges[:-1, None], np.arange(pixels))
    right = np.minimum(edges[1:, None], np.arange(1, pixels + 1))
    share: NDArray[np.float32] = (np.maximum(right - left, 0) * (cells / pixels)).astype(np.float32)
    return share


def pool(tokens: NDArray[np.floating], weights: NDArray[np.float32], whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted mean of each image's tokens as a unit vector; the whole image's vector where no token has weight.

    Parameters
    ----------
    tokens : ndarray of float, (B, n, D)
        Not normalised.
    weights : ndarray of float32, (B, n)
        Not negative; only their proportions count.
    whole : ndarray of float32, (B, D)
        Vectors of the whole images.

    Returns
    -------
    ndarray of float32, (B, D)
    """
    pooled = unit(np.einsum("bnd,bn->bd", tokens.astype(np.float32), weights))
    out: NDArray[np.float32] = np.where(weights.sum(axis=1, keepdims=True) > 0, pooled, whole)
    return out


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the last axis to length one; a vector without length stays zero, one that is not finite becomes NaN."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled = np.zeros_like(vectors)
    with np.errstate(invalid="ignore"):
        np.divide(vectors, norms, out=scaled, where=norms != 0)
    return scaled
