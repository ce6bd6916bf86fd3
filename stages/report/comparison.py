"""Paired comparison of every method with one other on the same test images: bootstrap interval and permutation test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.report.answered import Answered, Fits
from stages.report.tables import UNDEFINED, Entry, Table, amounts, place

REFERENCE: Final = "original"
"""The method that every other is compared with: the same features without any mask."""
RESAMPLES: Final = 10_000
LEVEL: Final = 0.05
PAIRED: Final = ("n", "seeds", "accuracy", "reference", "difference", "low", "high", "p")
"""What a paired comparison tells, see `compare`."""


def compare(
    answers: pd.DataFrame, reference: str = REFERENCE, draws: Draws | None = None, *, mask: str = ""
) -> pd.DataFrame:
    """Compare every method with a reference at every amount of training data, on the test images that both answered.

    The difference is that of the accuracies, each the mean over the seeds that both have. Its interval is a percentile
    bootstrap (Efron, Annals of Statistics 7, 1979) over groups of test images, 10,000 times. The p value is that of a
    permutation test of the same difference, over all assignments: in each group either of the two methods might have
    been the other (Fisher's sign-flip test; Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005).
    Where each group has one image and there is one seed, this is McNemar's exact test (Psychometrika 12, 1947). All p
    values together are corrected by Holm's method (Scandinavian Journal of Statistics 6, 1979).

    Parameters
    ----------
    answers : DataFrame
        A row for each test image of each cell with `ANSWER_COLUMNS`; `correct` is bool.
    reference : str
        Where it is missing, nothing is compared.
    draws : Draws, optional
        To share with other comparisons.
    mask : str
        Policy of the reference; empty for a method that needs no mask.

    Returns
    -------
    DataFrame
        A row for each (mask, method, training) but the reference's: `n` images, `seeds`, `accuracy`, that of the
        `reference`, their `difference`, `low`, `high` (95 %), `p` and `p_holm`; shares, not percent.
    """
    answered, draws, rows = Answered.of(answers), draws or Draws(), []
    for (policy, method, training), fits in answered.fits.items():
        other = answered.fits.get((mask, reference, training), {})
        if (policy, method) != (mask, reference) and (found := _compared(answered, fits, other, draws)):
            rows.append({"mask": policy, "method": method, "training": training, **found})
    return with_holm(pd.DataFrame(rows, columns=["mask", "method", "training", *PAIRED]))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random draws for images of given groups."""

    groups: NDArray[np.int64]
    """Number of each image's group, from 0, (n,)."""
    times: NDArray[np.float32]
    """How often each group is drawn in each bootstrap resample, (RESAMPLES, groups)."""
    images: NDArray[np.float32]
    """Images in each resample, (RESAMPLES,)."""

    @classmethod
    def of(cls, groups: NDArray[np.int64]) -> Drawn:
        """Draw for images of these groups, the same for the same groups."""
        sizes, random = np.bincount(groups).astype(np.float32), np.random.default_rng(0)
        n = len(sizes)
        times = np.empty((RESAMPLES, n), np.float32)
        for row in times:
            row[:] = np.bincount(random.integers(n, size=n), minlength=n)
        return cls(groups, times, times @ sizes)


class Draws:
    """Draws for images of given groups; kept for as long as the groups stay the same."""

    def __init__(self) -> None:
        self._last: tuple[bytes, Drawn] | None = None

    def of(self, groups: NDArray[np.int64]) -> Drawn:
        """Draws for these groups, the same for the same groups.

        Parameters
        ----------
        groups : ndarray of int64, (n,)
            Number of each image's group, from 0.
        """
        key = groups.tobytes()  # what is compared nearly always shares its test images
        if self._last is None or self._last[0] != key:
            self._last = key, Drawn.of(groups)
        return self._last[1]


def paired(
    ours: Mapping[int, NDArray[np.float64]], theirs: Mapping[int, NDArray[np.float64]], drawn: Drawn
) -> dict[str, float] | None:
    """Compare two fits' answers on the same images over the seeds that both have, as `compare` says.

    Parameters
    ----------
    ours, theirs : Mapping[int, ndarray of float64, (n,)]
        By seed, 1 for each image that was answered right and 0 for the others.
    drawn : Drawn
        From `Draws.of`.

    Returns
    -------
    dict[str, float] or None
        `PAIRED`; None where no seed is in both.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mine, other = (np.mean([found[seed] for seed in seeds], axis=0) for found in (ours, theirs))
    sums = np.bincount(drawn.groups, mine - other).astype(np.float64)
    low, high = np.quantile(drawn.times @ sums.astype(np.float32) / drawn.images, (LEVEL / 2, 1 - LEVEL / 2))
    means = np.mean(mine), np.mean(other), np.mean(mine - other)
    numbers = (len(mine), len(seeds), *means, low, high, _p_value(np.rint(sums * len(seeds)).astype(np.int64)))
    kinds = (int, int, *[float] * 6)
    return {name: kind(number) for name, kind, number in zip(PAIRED, kinds, numbers, strict=True)}


def _p_value(ahead: NDArray[np.int64]) -> float:
    """Two-sided exact p of the sum of the groups' differences when each might as well have the other sign.

    Parameters
    ----------
    ahead : ndarray of int64, (groups,)
        Right answers, over all images and seeds of a group, that one method has more than the other.
    """
    from scipy.stats import binom

    beyond = abs(int(ahead.sum()))
    if not beyond:
        return 1.0
    chance = np.ones(1)
    """Of each sum of what the groups with a positive sign are ahead."""
    for size, groups in zip(*np.unique(np.abs(ahead[ahead != 0]), return_counts=True), strict=True):
        step = np.zeros(size * groups + 1)
        step[::size] = binom.pmf(np.arange(groups + 1), groups, 0.5)
        chance = np.convolve(chance, step)
    least = (len(chance) - 1 + beyond) // 2  # the sum of all signs is twice that of the positive ones less everything
    return float(min(1.0, 2 * chance[least:].sum()))


def with_holm(compared: pd.DataFrame) -> pd.DataFrame:
    """Add `p_holm`: the `p` of all rows together, corrected by Holm's method."""
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests(compared["p"].astype("float64"), method="holm")[1] if len(compared) else []
    return compared.assign(p_holm=corrected)


def near_best(
    answers: pd.DataFrame, summary: pd.DataFrame, draws: Draws | None = None
) -> dict[tuple[str, str, str], str]:
    """Which results are the best at their amount of training data, and which are not significantly worse.

    Each method is compared with the best as `compare` does, corrected by Holm's method within the amount.

    Returns
    -------
    dict[tuple[str, str, str], str]
        `best` or `near` by mask, method and training; what is worse, or shares no test image or seed, is left out.
    """
    marks: dict[tuple[str, str, str], str] = {}
    answered, draws = Answered.of(answers), draws or Draws()
    for training, rows in summary.groupby("training"):
        keys = [(mask, method, str(training)) for mask, method in zip(rows["mask"], rows["method"], strict=True)]
        means = dict(zip(keys, rows["accuracy_mean"], strict=True))
        best = max(means, key=lambda key: (means[key], key))
        marks[best] = "best"
        own = {key: answered.fits.get(key, {}) for key in means}
        found = {key: _compared(answered, own[key], own[best], draws) for key in means if key != best}
        told = pd.DataFrame([{"key": key, **row} for key, row in found.items() if row], columns=["key", *PAIRED])
        corrected = with_holm(told)
        marks |= dict.fromkeys(corrected[corrected["p_holm"] >= LEVEL]["key"], "near")
    return marks


def comparison_table(compared: pd.DataFrame) -> Table:
    """Differences in percentage points with their intervals and corrected p values; a column an amount."""
    columns = amounts(compared)
    pairs = dict.fromkeys(zip(compared["method"], compared["mask"], strict=True))
    header = (Entry("method"), Entry("mask"), *(Entry(column) for column in columns))
    rows = []
    for method, mask in sorted(pairs, key=lambda pair: (place(pair[0]), pair[1])):
        chosen = compared[(compared["method"] == method) & (compared["mask"] == mask)]
        found = {row["training"]: row for row in chosen.to_dict("records")}
        cells = [_entry(found[c]) if c in found else Entry(UNDEFINED) for c in columns]
        rows.append((Entry(method), Entry(mask or UNDEFINED), *cells))
    return Table(header, tuple(rows), names=2)


def _entry(row: Mapping[Hashable, Any]) -> Entry:
    star = " *" if row["p_holm"] < LEVEL else ""
    p = f"p {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "p < 0.001"
    text = f"{100 * row['difference']:+.1f}{star}"
    return Entry(text, f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}\n{p}")


def _compared(answered: Answered, ours: Fits, theirs: Fits, draws: Draws) -> dict[str, float] | None:
    """Compare two methods on the images and seeds that both have; None if there is none of either."""
    both = answered.both(ours, theirs)
    if both is None:
        return None
    mine, other, groups = both
    return paired(mine, other, draws.of(groups))
