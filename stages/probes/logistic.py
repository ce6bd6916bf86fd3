"""Logistic regression on frozen features, exact in the row space of the training subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stages.probes.linear import LinearProbe, Matrix, frequencies
from stages.probes.newton import Regressions, Solution
from stages.splits import Indices

TOLERANCE = 1e-18
"""Twice the loss still to be won, where the fit that is kept stops."""
FOLD_TOLERANCE = 1e-9
"""The same inside the folds; their probabilities are then exact to about 1e-5."""
CONVERGED = 1e-6
"""A fit whose gradient is larger is reported as not converged."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A probe and how its optimisation ended."""

    probe: LinearProbe
    converged: bool = True
    gradient_norm: float = 0.0
    """Length of the gradient of mean loss + |coef|^2 / (2 C n), in units of the features' scale."""
    iterations: int = 0


@dataclass(frozen=True, slots=True)
class Rotated:
    """A training subset in coordinates of its own row space."""

    z: Matrix
    """Rows in units of `scale`, (n, r), r the less of n and D; columns are orthogonal."""
    scale: float
    """Root mean square length of the centred rows, so that the solver works alike at any scale of the features."""
    axes: Matrix
    """Orthonormal, (r, D)."""
    mean: Matrix
    """(D,)."""
    labels: NDArray[np.int64]
    """Class index, (n,)."""

    @property
    def classes(self) -> NDArray[np.int64]:
        """Class indices that occur, ascending."""
        return np.unique(self.labels)


def rotate(features: Matrix, labels: NDArray[np.int64]) -> Rotated:
    """Centre a training subset and turn it into its own row space, which changes no prediction.

    The penalty on the coefficients keeps them in the span of the centred rows, whose lengths and angles the rotation
    leaves alone, and the intercept, which has no penalty, takes up the mean. With fewer rows than features this is
    the kernel trick for a linear model (Hastie and Tibshirani, Biostatistics 5(3), 2004).

    Parameters
    ----------
    features : ndarray of float64, (n, D)
        As `prepare` returns them.
    labels : ndarray of int64, (n,)
        Class index of each row.

    Returns
    -------
    Rotated
        The less of n and D columns, orthogonal to each other, so that the solver's preconditioner fits.
    """
    mean = features.mean(axis=0)
    centred = features - mean
    scale = float(np.linalg.norm(centred) / np.sqrt(len(centred))) or 1.0
    n, width = features.shape
    basis = np.linalg.qr(centred.T)[0] if n < width else np.eye(width)
    z = centred @ basis / scale
    turn = np.linalg.eigh(z.T @ z)[1]
    return Rotated(z @ turn, scale, (basis @ turn).T, mean, labels)


def fit(rotated: Rotated, c: float, n_classes: int, max_iter: int, *, normalise: bool) -> Fit:
    """Fit the L2-penalised multinomial (binary: logistic) regression to convergence.

    Parameters
    ----------
    rotated : Rotated
        Training subset; with one class only, that class gets probability 1.
    c : float
        Inverse regularisation strength, as scikit-learn defines it.
    n_classes : int
        K.
    max_iter : int
        Bound on Newton steps.
    normalise : bool
        Kept in the probe, for features to come.

    Returns
    -------
    Fit
        `converged` says whether the gradient vanished, whatever the solver reported.
    """
    seen = rotated.classes
    if len(seen) == 1:
        counts = np.bincount(rotated.labels, minlength=n_classes)
        return Fit(replace(frequencies(counts, len(rotated.mean)), normalise=normalise))
    everything = np.ones((1, len(rotated.labels)), dtype=bool)
    solver = Regressions(rotated.z, np.searchsorted(seen, rotated.labels), everything, exact=True)
    (found,) = solver.solve([c * rotated.scale**2], [None], TOLERANCE, max_iter)
    probe = LinearProbe(np.zeros((n_classes, len(rotated.mean))), np.full(n_classes, -np.inf), rotated.mean, normalise)
    coef, intercept = solver.coefficients(found)
    probe.coef[seen] = coef[:, 0] @ rotated.axes / rotated.scale
    probe.intercept[seen] = intercept[:, 0]
    gradient = float(found.gradient[0])
    return Fit(probe, gradient <= CONVERGED, gradient, found.steps)


class FoldLoss:
    """Held-out log-loss of inner folds as a function of C, all folds and the C of one question fitted together.

    The first C that are asked are fitted from zero, others from what is known at the nearest.

    Parameters
    ----------
    rotated : Rotated
        Training subset.
    folds : sequence of (fit, held) pairs of ndarray of int64
        Positions in the subset; every row is held once, and every class occurs in every fit.
    max_iter : int
        Bound on Newton steps.
    """

    def __init__(self, rotated: Rotated, folds: Sequence[tuple[Indices, Indices]], max_iter: int) -> None:
        self.held = np.zeros((len(folds), len(rotated.labels)), dtype=bool)
        for fold, (_, held) in zip(self.held, folds, strict=True):
            fold[held] = True
        labels = np.searchsorted(rotated.classes, rotated.labels)
        self.solver = Regressions(rotated.z, labels, ~self.held, exact=False)
        self.scale, self.max_iter = rotated.scale, max_iter
        self.known: dict[float, Solution] = {}

    def solutions(self, strengths: Sequence[float]) -> list[Solution]:
        """Fits of all folds at each C."""
        scaled, starts = [c * self.scale**2 for c in strengths], [self._start(c) for c in strengths]
        found = self.solver.solve(scaled, starts, FOLD_TOLERANCE, self.max_iter)
        self.known |= dict(zip(strengths, found, strict=True))
        return found

    def _start(self, c: float) -> Matrix | None:
        """Between the nearest solutions on either side, by the logarithm of C; beyond all, the nearest; first, none."""
        below = max((known for known in self.known if known <= c), default=None)
        above = min((known for known in self.known if known >= c), default=None)
        if below is None or above is None or below == above:
            nearest = below or above
            return None if nearest is None else self.known[nearest].free
        share = np.log(c / below) / np.log(above / below)
        mixed: Matrix = (1 - share) * self.known[below].free + share * self.known[above].free
        return mixed

    def __call__(self, strengths: Sequence[float]) -> list[float]:
        """Mean log-loss over all held-out rows at each C."""
        return [-float(found.log_probabilities[self.held].mean()) for found in self.solutions(strengths)]
