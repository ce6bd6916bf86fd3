"""Temperature scaling: one number that makes the probabilities of a fitted head as sure as they are right."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array

Matrix = NDArray[np.float64]

LOWEST: Final = 0.05
HIGHEST: Final = 20.0
"""Bounds of the temperature; logits that carry nothing end at the higher one."""
PRECISION: Final = 1e-6
"""To which the logarithm of the temperature is found."""


def fit_temperature(logits: Matrix, labels: NDArray[np.int64]) -> float:
    """Temperature with the least log-loss on images that the head was not fitted on.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2. Where every answer is right, the loss
    falls towards T = 0 and says nothing of how often the head errs: then T is 1.

    Parameters
    ----------
    logits : ndarray of float64, (n, K)
        Minus infinity for a class that the head never saw.
    labels : ndarray of int64, (n,)
        Class index, in [0, K).

    Returns
    -------
    float
        T, in [`LOWEST`, `HIGHEST`]; above 1 if the head was too sure, below if it was not sure enough.

    Raises
    ------
    ValueError
        If there is no row, or shapes or types do not fit.
    """
    from scipy.optimize import minimize_scalar

    expect_array("logits", logits, (None, None), "float64")
    expect_array("labels", labels, (len(logits),), "int64")
    if not len(labels):
        raise ValueError("logits: expected at least one row, got none")
    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    own = np.arange(len(labels)), labels

    def loss(log_t: float) -> float:
        return -float(_log_softmax(logits / np.exp(log_t))[own].mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": PRECISION})
    return float(np.exp(found.x))


def tempered(logits: Matrix, temperature: float) -> Matrix:
    """Probabilities softmax(logits / T), (n, K); T never changes which class is the likeliest."""
    probabilities: Matrix = np.exp(_log_softmax(logits / temperature))
    return probabilities


def _log_softmax(scores: Matrix) -> Matrix:
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Matrix = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
