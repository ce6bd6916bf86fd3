"""L2-penalised multinomial regression on several subsets of the same rows at once, by truncated Newton steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Matrix = NDArray[np.float64]

LOOSE: Final = 1e-2
TIGHT: Final = 1e-4
"""Share of the decrement by which a Newton direction may fall short, far from the end and near it."""
MOST_PRODUCTS: Final = 200
"""Products with the Hessian in one Newton step."""
ARMIJO: Final = 1e-4
HALVINGS: Final = 40
ROUNDING: Final = 1e-14
"""Relative error of a loss in float64."""
TINY: Final = float(np.finfo(np.float32).tiny)


class Solution(NamedTuple):
    """Where the optimisation of F fits of K classes on n rows of r entries ended."""

    free: Matrix
    """What was fitted, (K - 1, F, r + 1)."""
    log_probabilities: Matrix
    """Of every row's own class under every fit, rows that the fit did not see too, (F, n)."""
    gradient: Matrix
    """Length of each fit's gradient by `free`, (F,)."""
    steps: int
    """Newton steps of the fit that took most, of those that were solved together."""


class Regressions:
    """F fits on subsets of the same n rows, at one C or several; products with the rows are shared by all.

    A product reads all rows and does little with them, so that where rows are many ten fits cost hardly more than five.

    The objective of a fit is mean loss + |coef|^2 / (2 C n_fit), as scikit-learn's. Its Hessian is never built: a
    Newton direction is found by conjugate gradients (Steihaug, SIAM Journal on Numerical Analysis 20(3), 1983),
    preconditioned by the diagonal that the Hessian has where the columns of the rows are orthogonal, as those of
    `rotate` are. As the coefficients of the classes sum to zero at the optimum, K - 1 orthonormal combinations of them
    are fitted; the intercept is the coefficient of a column of ones, without penalty.

    Parameters
    ----------
    z : ndarray of float64, (n, r)
        Rows; with orthogonal columns it takes fewest steps.
    labels : ndarray of int64, (n,)
        In [0, K); every class occurs in every fit.
    kept : ndarray of bool, (F, n)
        Rows that each fit sees.
    exact : bool
        Find directions in float64 too; else in float32, which is twice as fast. Losses and gradients are float64.
    """

    def __init__(self, z: Matrix, labels: NDArray[np.int64], kept: NDArray[np.bool_], *, exact: bool) -> None:
        from scipy.linalg import helmert

        self.z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        self.z_fast: Floats = self.z if exact else self.z.astype(np.float32)
        self.n_classes = int(labels.max()) + 1
        self.combinations: Matrix = helmert(self.n_classes).T
        self.truth = (np.arange(self.n_classes)[:, None] == labels).astype(np.float64)[:, None]
        self.counts = kept.sum(axis=1)
        self.share = kept / self.counts[:, None]
        self.mean_squares = self.share @ self.z**2

    def solve(
        self, strengths: Sequence[float], starts: Sequence[Matrix | None], tolerance: float, max_iter: int
    ) -> list[Solution]:
        """Fit all subsets at each C.

        Parameters
        ----------
        strengths : Sequence[float]
            Inverse regularisation strengths C.
        starts : Sequence of ndarray of float64, (K - 1, F, r + 1), or None
            Where to begin, for each C; None is zero.
        tolerance : float
            A fit ends when its decrement, twice the loss that the next step could still win, is below.
        max_iter : int
            Bound on Newton steps.
        """
        # scikit-learn fits two classes by one row of coefficients, the difference of ours: half the penalty of two.
        each = (2.0 if self.n_classes == 2 else 1.0) / np.outer(strengths, self.counts).reshape(-1, 1)
        penalty = np.repeat(each, self.z.shape[1], axis=1)
        penalty[:, -1] = 0
        times = len(strengths)
        everything = _Batch(np.tile(self.share, (times, 1)), np.tile(self.mean_squares, (times, 1)), penalty)
        zero = np.zeros((self.n_classes - 1, len(self.counts), self.z.shape[1]))
        free = np.concatenate([zero if start is None else start for start in starts], axis=1)
        active, batch, point, steps = np.arange(len(penalty)), everything, self._at(free, everything), 0
        while len(active) and steps < max_iter:
            steps += 1
            step = self._direction(point, batch)
            decrement = -_dot(point.slopes, step)
            moved = self._line_search(point, step, decrement, batch)
            free[:, active] = moved.free
            left = (decrement > tolerance) & (moved.loss < point.loss)
            active, batch, point = active[left], batch.of(left), moved.of(left)
        end = self._at(free, everything)
        own = (end.probabilities * self.truth).sum(axis=0)
        logs = np.log(np.maximum(own, np.finfo(np.float64).tiny))
        gradients = np.sqrt(_dot(end.slopes, end.slopes))
        parts = (np.split(free, times, axis=1), np.split(logs, times), np.split(gradients, times))
        return [Solution(*part, steps) for part in zip(*parts, strict=True)]

    def coefficients(self, solution: Solution) -> tuple[Matrix, Matrix]:
        """Coefficients, (K, F, r), and intercepts, (K, F), of all classes."""
        by_class: Matrix = np.tensordot(self.combinations, solution.free, 1)
        return by_class[..., :-1], by_class[..., -1]

    def _at(self, free: Matrix, batch: _Batch) -> _Point:
        """Loss, gradient and probabilities at a point; classes come first, so that sums over them are sums of rows."""
        scores = _combine(self.combinations, _times(free, self.z.T))
        scores -= scores.max(axis=0)
        probabilities = np.exp(scores)
        total = probabilities.sum(axis=0)
        probabilities /= total
        surprise = np.log(total) - (scores * self.truth).sum(axis=0)
        loss = (batch.share * surprise).sum(axis=1) + _dot(free, batch.penalty * free) / 2
        excess = _combine(self.combinations.T, (probabilities - self.truth) * batch.share)
        return _Point(free, loss, _times(excess, self.z) + batch.penalty * free, probabilities)

    def _direction(self, point: _Point, batch: _Batch) -> Floats:
        """Newton directions by preconditioned conjugate gradients."""
        kind, z = self.z_fast.dtype, self.z_fast
        combine, separate = self.combinations.astype(kind), self.combinations.T.astype(kind)
        probabilities, penalty = point.probabilities.astype(kind), batch.penalty.astype(kind)
        weights = (point.probabilities * batch.share).astype(kind)
        spread = _combine(separate**2, (weights * (1 - probabilities)).sum(axis=2, keepdims=True))
        scale = 1 / np.maximum(penalty + batch.mean_squares.astype(kind) * spread, TINY)
        rest = -point.slopes.astype(kind)
        step, way = np.zeros_like(rest), scale * rest
        size = _dot(rest, way)
        enough = size * np.clip(size, TIGHT, LOOSE)
        going = size > TINY
        for _ in range(MOST_PRODUCTS):
            if not going.any():
                break
            change = _combine(combine, _times(way, z.T))
            change -= (probabilities * change).sum(axis=0)
            change *= weights
            turn = _times(_combine(separate, change), z) + penalty * way
            curvature = _dot(way, turn)
            going &= curvature > 0
            length = np.divide(size, curvature, out=np.zeros_like(size), where=going)[:, None]
            step += length * way
            rest -= length * turn
            conditioned = scale * rest
            new_size = _dot(rest, conditioned)
            way *= np.divide(new_size, size, out=np.zeros_like(size), where=going)[:, None]
            way += conditioned
            going &= new_size > enough
            size = new_size
        return step

    def _line_search(self, point: _Point, step: Floats, decrement: Matrix, batch: _Batch) -> _Point:
        """The first of a whole step, a half, a quarter ... that lowers the loss of each fit enough."""
        length = np.ones(len(decrement))
        for _ in range(HALVINGS):
            moved = self._at(point.free + length[:, None] * step, batch)
            short = moved.loss > point.loss - ARMIJO * length * decrement + ROUNDING * np.abs(point.loss)
            if not short.any():
                break
            length = np.where(short, length / 2, length)
        return moved


class _Batch(NamedTuple):
    """What belongs to the fits that are still under way."""

    share: Matrix
    """1 / n_fit for rows that a fit sees, else 0; (F, n)."""
    mean_squares: Matrix
    """Of each column over those rows, (F, r + 1)."""
    penalty: Matrix
    """1 / (C n_fit), and 0 for the intercept; (F, r + 1)."""

    def of(self, fits: NDArray[np.bool_]) -> _Batch:
        return _Batch(*(part[fits] for part in self))


class _Point(NamedTuple):
    """Where fits are, and loss and gradient there."""

    free: Matrix
    loss: Matrix
    """(F,)."""
    slopes: Matrix
    """Gradient, (K - 1, F, r + 1)."""
    probabilities: Matrix
    """(K, F, n)."""

    def of(self, fits: NDArray[np.bool_]) -> _Point:
        return _Point(self.free[:, fits], self.loss[fits], self.slopes[:, fits], self.probabilities[:, fits])


def _times(stack: Floats, matrix: Floats) -> Floats:
    """(J, F, a) times (a, b) as one product."""
    product: Floats = stack.reshape(-1, stack.shape[2]) @ matrix
    return product.reshape(*stack.shape[:2], matrix.shape[1])


def _combine(weights: Floats, stack: Floats) -> Floats:
    """(I, J) times (J, F, a) over J."""
    product: Floats = weights @ stack.reshape(len(stack), -1)
    return product.reshape(len(weights), *stack.shape[1:])


def _dot(a: Floats, b: Floats) -> Any:
    """Inner products of (J, F, a), one a fit."""
    return np.einsum("jfa,jfa->f", a, b)
