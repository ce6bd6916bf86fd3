"""The choice of C by inner folds: the search of the CLIP paper (appendix A.3), inside the training subset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.probes.logistic import FoldLoss, Rotated
from stages.probes.settings import ProbesSettings
from stages.splits import inner_folds

STEPS_PER_DECADE = 8
LAST_STEP = 96
"""C runs from 1e-6 to 1e6: twelve decades of eight steps."""
COARSE = (0, 16, 32, *range(48, LAST_STEP + 1, 8))
"""The search begins at 1e-6, 1e-4, 0.01, 1, and then, as larger C take longer, at every decade: 10, 100, ..., 1e6."""
COARSE_STRIDE = 16
"""The widest gap of these."""
DECIMALS = 5
"""To which losses are told apart: beyond lies what the solver leaves."""
RISEN = 1.1
"""Times the least loss, above which no larger coarse C is tried."""
FALLBACK_C = 0.316
"""The value of CLIP's published linear probe on vectors as they are, for subsets that cannot be folded."""
CLIP_LENGTH = 10.0
"""Usual length of the vectors for which that value was chosen; C grows with its square when they are scaled to 1."""


def choose_c(
    rotated: Rotated, groups: Sequence[str], settings: ProbesSettings, seed: int
) -> tuple[float, float | None]:
    """Inverse regularisation strength with the least mean log-loss on held-out rows of the inner folds.

    Log-loss rather than accuracy: with few images many C have the same accuracy, and log-loss tells them apart. The
    rotation has seen the held-out rows, which changes nothing, because it is exact for each fold. Features M of
    `medfocus` were trained with the labels of all folds: the C chosen on them leans to weak regularisation. That
    bias stays inside the training subset; no test row takes part.

    Parameters
    ----------
    rotated : Rotated
        Training subset.
    groups : Sequence[str]
        group_id of each row; a group stays in one fold.
    settings : ProbesSettings
        C, folds, max_iter.
    seed : int
        Of the folds.

    Returns
    -------
    tuple[float, float | None]
        C, and the held-out log-loss there; None if nothing was searched: C is fixed, the subset has one class, or a
        class has fewer than two groups. Then C is 31.6 for unit vectors, and 0.316 for vectors as they are.
    """
    if settings.C != "folds":
        return settings.C, None
    folds = inner_folds(rotated.labels, groups, settings.folds, seed)
    if folds is None or len(rotated.classes) < 2:
        return FALLBACK_C * (CLIP_LENGTH**2 if settings.normalise else 1.0), None
    return search(FoldLoss(rotated, folds, settings.max_iter))


def search(losses: Callable[[Sequence[float]], Sequence[float]]) -> tuple[float, float]:
    """Find the C with the least loss: ascending coarse points, then halving the stride around the best.

    The largest C take longest, and only fit what the smaller ones had overfitted: coarse points end once the loss has
    clearly risen.

    Parameters
    ----------
    losses : Callable[[Sequence[float]], Sequence[float]]
        Loss at each C of a question; of losses that are equal to five decimals the smaller C is taken.

    Returns
    -------
    tuple[float, float]
        C and its loss.
    """
    strengths: list[float] = grid().tolist()
    known: dict[int, float] = {}

    def best_of(steps: Sequence[int]) -> int:
        new = sorted(set(steps) - known.keys())
        if new:
            found = losses([strengths[step] for step in new])
            known.update((step, round(loss, DECIMALS)) for step, loss in zip(new, found, strict=True))
        return min(steps, key=lambda step: (known[step], step))

    best = COARSE[0]
    for step in COARSE:
        best = best_of((best, step))
        if known[step] > RISEN * known[best]:
            break
    stride = COARSE_STRIDE // 2
    while stride:
        best = best_of([step for step in (best - stride, best, best + stride) if 0 <= step <= LAST_STEP])
        stride //= 2
    return strengths[best], known[best]


def grid() -> NDArray[np.float64]:
    """All values of C that the search can return, ascending."""
    return 10.0 ** (np.arange(LAST_STEP + 1) / STEPS_PER_DECADE - 6)
