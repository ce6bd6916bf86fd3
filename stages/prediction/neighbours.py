"""Nearest training images, and how far an image may be from them before it counts as unlike anything seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array

Matrix = NDArray[np.float64]

K: Final = 3
"""Neighbours that are shown; the distance to the last of them is the image's."""
QUANTILE: Final = 0.99
"""Share of training images that the threshold lets pass."""
ROWS: Final = 512
"""Images that are compared with all training images at once."""


def nearest(images: Matrix, training: Matrix, k: int = K) -> tuple[NDArray[np.int64], Matrix]:
    """Training images with the largest cosine.

    Parameters
    ----------
    images : ndarray of float64, (n, D)
        Unit vectors.
    training : ndarray of float64, (m, D)
        Unit vectors.
    k : int
        Neighbours of each image.

    Returns
    -------
    positions : ndarray of int64, (n, min(k, m))
        Rows of `training`, nearest first; of equally near ones the first.
    cosines : ndarray of float64, (n, min(k, m))
    """
    expect_array("images", images, (None, training.shape[1]), "float64")
    kept = min(k, len(training))
    positions, cosines = np.zeros((len(images), kept), np.int64), np.zeros((len(images), kept))
    for rows, near in _cosines(images, training):
        positions[rows] = np.argsort(-near, axis=1, kind="stable")[:, :kept]
        cosines[rows] = np.take_along_axis(near, positions[rows], axis=1)
    return positions, cosines


def distances(images: Matrix, training: Matrix, k: int = K) -> Matrix:
    """Euclidean distance of each unit vector to the k-th nearest training image's, (n,) in [0, 2].

    Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022. With fewer than k training images
    the farthest of them counts.
    """
    return _distance(nearest(images, training, k)[1][:, -1])


def held_out_distances(training: Matrix, groups: Sequence[str], k: int = K) -> Matrix:
    """The same for every training image, with all images of its own group left out, (m,).

    Parameters
    ----------
    training : ndarray of float64, (m, D)
        Unit vectors.
    groups : Sequence[str]
        Patient or study of each; an image has no other image of its patient to lean on, as a new patient's has not.
    k : int
        NaN where fewer images than that are left.
    """
    numbers = np.unique(np.array(groups), return_inverse=True)[1]
    found = np.full(len(training), np.nan)
    for rows, near in _cosines(training, training):
        near[numbers[rows][:, None] == numbers] = -np.inf
        if near.shape[1] >= k:
            kth = -np.partition(-near, k - 1, axis=1)[:, k - 1]
            found[rows] = np.where(np.isfinite(kth), _distance(kth), np.nan)
    return found


def threshold(training: Matrix, groups: Sequence[str], k: int = K) -> float:
    """Distance that `QUANTILE` of the training images keep below, each compared with other groups.

    Infinity where no image has k others: then nothing can be called unlike.
    """
    known = held_out_distances(training, groups, k)
    known = known[np.isfinite(known)]
    return float(np.quantile(known, QUANTILE, method="higher")) if len(known) else float("inf")


def _cosines(images: Matrix, training: Matrix) -> Iterator[tuple[slice, Matrix]]:
    for start in range(0, len(images), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, images[rows] @ training.T


def _distance(cosine: Matrix) -> Matrix:
    """Distance of unit vectors with this cosine."""
    squared: Matrix = np.sqrt(np.maximum(2 - 2 * cosine, 0))
    return squared
