"""Who was right, as arrays: one of all test images for every fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Key = tuple[str, str, str]
"""Mask, method and amount of training data."""
Fits = Mapping[int, NDArray[np.float64]]
"""By seed, 1 for each image that was answered right, 0 for the others, NaN for those that the fit did not see."""


@dataclass(frozen=True, slots=True)
class Answered:
    """All answers of a study; images are in the order in which they first come."""

    groups: NDArray[np.int64]
    """Number of each image's group, from 0, (n,)."""
    fits: Mapping[Key, Fits]
    """Arrays of (n,)."""

    @classmethod
    def of(cls, answers: pd.DataFrame) -> Answered:
        """Sort answers into arrays.

        Parameters
        ----------
        answers : DataFrame
            A row for each test image of each cell with `ANSWER_COLUMNS`; `correct` is bool.
        """
        places, images = pd.factorize(answers["image"])
        groups = np.zeros(len(images), np.int64)
        groups[places] = pd.factorize(answers["group"])[0]
        correct = answers["correct"].to_numpy(np.float64)
        fits: dict[Key, dict[int, NDArray[np.float64]]] = {}
        by_fit = cast(
            "Mapping[Any, NDArray[np.int64]]", answers.groupby(["training", "mask", "method", "seed"]).indices
        )
        for (training, mask, method, seed), rows in by_fit.items():
            right = np.full(len(images), np.nan)
            right[places[rows]] = correct[rows]
            fits.setdefault((mask, method, training), {})[int(seed)] = right
        return cls(groups, fits)

    def both(self, ours: Fits, theirs: Fits) -> tuple[Fits, Fits, NDArray[np.int64]] | None:
        """Answers of two methods on the images that the first seeds of both saw, and the groups of these images.

        Seeds that did not see one of these images are left out.

        Returns
        -------
        tuple or None
            Arrays of the m images; groups are numbered from 0. None if there is no such image.
        """
        if not ours or not theirs:
            return None
        common = np.flatnonzero(~np.isnan(ours[min(ours)]) & ~np.isnan(theirs[min(theirs)]))
        if not len(common):
            return None
        mine, other = (
            {seed: right[common] for seed, right in fits.items() if not np.isnan(right[common]).any()}
            for fits in (ours, theirs)
        )
        return mine, other, pd.factorize(self.groups[common])[0].astype(np.int64)
