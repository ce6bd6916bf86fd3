"""Grad-CAM of any head that reads the mean of an image's grid cells, without automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array
from stages.features import unit_rows

Vector = NDArray[np.float64]
Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Unit vectors, (m, D) float64, to the logits of K classes, (m, K); minus infinity for a class that is never said."""

STEP: Final = 1e-6
"""Of the central differences, on the unit sphere: rounding then adds about 1e-10 of a logit, curvature less."""


def grad_cam(tokens: NDArray[np.floating], weights: NDArray[np.floating], score: Score) -> Vector:
    """Relevance of each grid cell for the predicted class: the positive part of `signed_relevance`.

    Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2, for a head that reads the mean of the last map's cells.

    Parameters
    ----------
    tokens : ndarray of float, (n, D)
        Cells as the model gives them, not normalised.
    weights : ndarray of float, (n,)
        Share of each cell in the mean, not negative; only their proportions count.
    score : Score
        The head.

    Returns
    -------
    ndarray of float64, (n,)
        Not negative; all zero where the logits do not depend on the cells.

    Raises
    ------
    ValueError
        If shapes do not go together.
    """
    return np.maximum(signed_relevance(tokens, weights, score), 0.0)


def signed_relevance(tokens: NDArray[np.floating], weights: NDArray[np.floating], score: Score) -> Vector:
    """What each grid cell adds to the predicted class, w_j (dy / dv) t_j, and takes from it.

    The head reads the direction of v, the sum of w_j t_j; y is the predicted class's logit minus the mean of all finite
    ones, because a softmax does not see what they share. Since y does not depend on the length of v, all n numbers
    sum to zero. Each is a central difference along w_j t_j, in float64, so that `score` may be any head.

    Parameters
    ----------
    tokens : ndarray of float, (n, D)
        Cells as the model gives them, not normalised.
    weights : ndarray of float, (n,)
        Share of each cell in the mean, not negative; only their proportions count.
    score : Score
        The head; called once, with 2n + 1 vectors.

    Returns
    -------
    ndarray of float64, (n,)
        Zero for a cell without weight, and for all if v has no length.

    Raises
    ------
    ValueError
        If shapes do not go together.
    """
    if tokens.ndim != 2 or weights.shape != tokens.shape[:1]:
        raise ValueError(f"weights: expected (n,) for tokens (n, D), got {weights.shape} for {tokens.shape}")
    parts = weights.astype(np.float64)[:, None] * tokens.astype(np.float64)
    whole = parts.sum(axis=0)
    length = float(np.linalg.norm(whole))
    if length == 0:
        return np.zeros(len(tokens))
    lengths = np.linalg.norm(parts, axis=1)
    steps = STEP * unit_rows(parts)
    centre = whole / length
    logits = score(unit_rows(np.concatenate([centre[None], centre + steps, centre - steps])))
    expect_array("logits", logits, (2 * len(tokens) + 1, None), "float64")
    y = _against_the_mean(logits)
    slopes = (y[1 : len(tokens) + 1] - y[len(tokens) + 1 :]) / (2 * STEP)
    signed: Vector = slopes * lengths / length
    return signed


def _against_the_mean(logits: NDArray[np.float64]) -> Vector:
    """Logit of the class that the first row is given, minus the mean of the finite ones, (m,)."""
    said = np.isfinite(logits[0])
    own: Vector = logits[:, int(logits[0].argmax())] - logits[:, said].mean(axis=1)
    return own
