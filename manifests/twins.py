"""Pairs of images that show the same picture: the same pixels, or nearly, in whatever position and brightness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from manifests.looks import THUMBNAIL_PX, VARIANTS, Looks, variants
from manifests.types import ImageRow, Split

NEAR_BITS = 8
"""Hashes may differ in this many of 64 bits; what they find is then compared by correlation."""
NEAR_CORRELATION = 0.99
"""Correlation of two thumbnails from which on they show the same picture."""
BLOCK = 2**22
"""Pairs of hashes that are compared at once."""
VERIFIED = 2**13
"""Pairs of thumbnails that are compared at once."""
PIXELS = "pixels"
"""How two images are twins whose pixels are all the same."""


class Twin(BaseModel):
    """Two images that show the same picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    other_id: str
    how: str
    """How the other lies on it, one of `VARIANTS`; or `PIXELS`."""
    correlation: float
    """Of their thumbnails; 1 for the same pixels."""


class Pair(NamedTuple):
    """Two positions in one list of images."""

    first: int
    second: int
    how: str
    correlation: float


def find_pairs(rows: Sequence[ImageRow], looks: Looks, n_old: int = 0) -> Iterator[Pair]:
    """Find near-duplicates by perceptual hash, and verify each by the correlation of thumbnails.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        All images, earlier ones first.
    looks : Looks
        One for every row.
    n_old : int
        How many are of earlier drops: pairs among them were found when they came.

    Yields
    ------
    Pair
        In no order; a pair can come in several positions, such as two symmetrical pictures.
    """
    yield from _same_pixels(rows, looks, n_old)
    grey = looks.thumbnails.reshape(len(looks), -1).astype(np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    length = np.linalg.norm(grey, axis=1, keepdims=True)
    # A picture of one grey has no correlation with any other; its pixels have been compared.
    usable = looks.seen & (length[:, 0] > 0)
    grey /= np.maximum(length, 1e-6)
    turned = variants(grey.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX))
    for first, second, index in _candidates(looks.hashes, usable, n_old):
        found = (grey[first] * turned[index][second].reshape(-1, THUMBNAIL_PX**2)).sum(axis=1)
        for i in np.flatnonzero(found >= NEAR_CORRELATION):
            yield Pair(int(first[i]), int(second[i]), VARIANTS[index], min(1.0, float(found[i])))


def _same_pixels(rows: Sequence[ImageRow], looks: Looks, n_old: int) -> Iterator[Pair]:
    """Images with the same pixels: each beside the first two of every split and class, not beside all others."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for position in np.flatnonzero(looks.seen).tolist():
        same[looks.pixels[position].tobytes()].append(position)
    for positions in same.values():
        shown: dict[tuple[Split, str], list[int]] = defaultdict(list)
        for position in positions:
            shown[rows[position].split, rows[position].label].append(position)
        for one in (position for members in shown.values() for position in members[:2]):
            pairs = ((min(one, other), max(one, other)) for other in positions if other != one)
            yield from (Pair(first, second, PIXELS, 1.0) for first, second in pairs if second >= n_old)


def _candidates(
    hashes: NDArray[np.uint64], usable: NDArray[np.bool_], n_old: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Positions of two images, the first the smaller, whose hashes are near, and number of the second's variant."""
    rows = np.flatnonzero(usable)
    new = np.searchsorted(rows, n_old)
    upright, positions = hashes[rows, 0], hashes[rows]
    step = max(1, BLOCK // max(1, len(rows)))
    for start in range(int(new), len(rows), step):
        stop = min(start + step, len(rows))
        for index in range(len(VARIANTS)):
            # The hash of a picture in one position against the upright one of another: each pair of images comes once.
            apart = np.bitwise_count(positions[start:stop, None, index] ^ upright[None, :stop])
            second, first = np.nonzero(apart <= NEAR_BITS)
            second += start
            kept = np.flatnonzero(first < second)
            for part in range(0, len(kept), VERIFIED):
                some = kept[part : part + VERIFIED]
                yield rows[first[some]], rows[second[some]], index


def name_twins(rows: Sequence[ImageRow], pairs: Iterator[Pair]) -> tuple[Twin, ...]:
    """The pairs that an audit keeps: of each image the nearest twin in every split and class.

    What is left out changes no finding about splits or classes, so that a thousand copies do not make a million pairs.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        All images, in the order that the pairs count.
    pairs : Iterator[Pair]
        From `find_pairs`.

    Returns
    -------
    tuple[Twin, ...]
        Sorted; of images with different bytes only, because equal bytes are known as duplicates.
    """
    best: dict[tuple[str, Split, str], tuple[float, str, Pair]] = {}
    for pair in pairs:
        one, other = rows[pair.first], rows[pair.second]
        if one.image_id == other.image_id:
            continue
        for row, beside in ((one, other), (other, one)):
            key = (row.image_id, beside.split, beside.label)
            # Twins of one correlation: the same pixels before all others, then by name.
            rank = (-pair.correlation - (pair.how == PIXELS), beside.image_id, pair)
            if key not in best or rank[:2] < best[key][:2]:
                best[key] = rank
    found = {(rows[p.first].image_id, rows[p.second].image_id): p for _, _, p in best.values()}
    return tuple(
        Twin(image_id=one, other_id=other, how=p.how, correlation=round(p.correlation, 4))
        for (one, other), p in sorted(found.items())
    )
