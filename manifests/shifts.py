"""Whether a new drop differs from the earlier ones in its classes or in how bright its images are."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from manifests.looks import Looks
from manifests.types import ImageRow

NOTABLE_P = 0.001
"""p-value below which a shift is reported; a large drop makes small shifts significant, so the distance counts too."""
NOTABLE_DISTANCE = 0.1


class Shift(BaseModel):
    """How far one property of the new images is from that of the earlier ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Literal["classes", "grey levels"]
    distance: float
    """Total variation between class shares; Kolmogorov-Smirnov distance between mean grey levels."""
    p_value: float
    """Of the chi-squared test on class counts; of the two-sample Kolmogorov-Smirnov test."""
    n_new: int
    n_earlier: int

    @property
    def is_notable(self) -> bool:
        """Whether it is too large for chance, and large enough to matter."""
        return self.p_value < NOTABLE_P and self.distance >= NOTABLE_DISTANCE


def find_shifts(
    rows: Sequence[ImageRow], looks: Looks, earlier: Sequence[ImageRow], earlier_looks: Looks
) -> tuple[Shift, ...]:
    """Compare a drop with all earlier ones.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        The new drop.
    looks : Looks
        One for every new row.
    earlier : Sequence[ImageRow]
        Rows of all earlier drops.
    earlier_looks : Looks
        One for every earlier row.

    Returns
    -------
    tuple[Shift, ...]
        Of classes and of grey levels, each where both sides have at least two such images.
    """
    classes = _class_shift(_labels(rows), _labels(earlier))
    levels = _level_shift(_levels(looks), _levels(earlier_looks))
    return tuple(shift for shift in (classes, levels) if shift)


def _labels(rows: Sequence[ImageRow]) -> list[str]:
    return [row.label for row in rows if row.label]


def _levels(looks: Looks) -> list[float]:
    """Mean grey level of every image that could be read, 0 to 255."""
    levels: list[float] = looks.thumbnails[looks.seen].mean(axis=(1, 2)).tolist()
    return levels


def _class_shift(new: Sequence[str], earlier: Sequence[str]) -> Shift | None:
    from scipy.stats import chi2_contingency

    if min(len(new), len(earlier)) < 2:
        return None
    counts = [Counter(new), Counter(earlier)]
    names = sorted({*new, *earlier})
    table = np.array([[count[name] for name in names] for count in counts])
    shares = table / table.sum(axis=1, keepdims=True)
    p_value = float(chi2_contingency(table).pvalue) if len(names) > 1 else 1.0
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return Shift(of="classes", distance=round(distance, 4), p_value=p_value, n_new=len(new), n_earlier=len(earlier))


def _level_shift(new: Sequence[float], earlier: Sequence[float]) -> Shift | None:
    from scipy.stats import ks_2samp

    if min(len(new), len(earlier)) < 2:
        return None
    with warnings.catch_warnings():
        # For a few values scipy may fail to find the exact p value, says so, and takes the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ks_2samp(new, earlier)
    return Shift(
        of="grey levels",
        distance=round(float(test.statistic), 4),
        p_value=float(test.pvalue),
        n_new=len(new),
        n_earlier=len(earlier),
    )
