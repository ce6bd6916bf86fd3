"""Paired comparison of every method with one other on the same test images: bootstrap interval and McNemar's test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.report.tables import UNDEFINED, Entry, Table, amounts, place

REFERENCE: Final = "original"
"""The method that every other is compared with: the same features without any mask."""
RESAMPLES: Final = 10_000
LEVEL: Final = 0.05
PAIRED: Final = ("n", "seeds", "difference", "low", "high", "p")
"""What a paired comparison tells, see `compare`."""


def compare(answers: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Compare every method with a reference at every amount of training data.

    The difference is that of the accuracies, each the mean over the seeds that both have. Its interval is a percentile
    bootstrap (Efron, Annals of Statistics 7, 1979) over groups of test images, 10,000 times, the same resamples for all
    comparisons. The p value is McNemar's exact test (Psychometrika 12, 1947), in which an image counts as right for a
    method if more than half of its seeds are right; all p values together are corrected by Holm's method (Scandinavian
    Journal of Statistics 6, 1979).

    Parameters
    ----------
    answers : DataFrame
        A row for each test image of each cell with `ANSWER_COLUMNS`; `correct` is bool.
    reference : str
        Method that needs no mask; where it is missing, nothing is compared.

    Returns
    -------
    DataFrame
        A row for each (mask, method, training) but the reference's: `n` images, `seeds`, `difference`, `low`, `high`
        (95 %), `p` and `p_holm`; shares, not percent.
    """
    rows = []
    numbered, draws = _numbered(answers), Draws()
    for training, cells in numbered.groupby("training"):
        baseline = cells[cells["method"] == reference]
        if baseline.empty:
            continue
        images, groups = _drawn_from(baseline)
        theirs = _by_image(baseline, images)
        for (mask, method), own in cells[cells["method"] != reference].groupby(["mask", "method"]):
            found = paired(_by_image(own, images), theirs, draws.of(groups))
            if found is not None:
                rows.append({"mask": mask, "method": method, "training": training, **found})
    return with_holm(pd.DataFrame(rows, columns=["mask", "method", "training", *PAIRED]))


class Draws:
    """How often each image is drawn in each bootstrap resample; kept for as long as the groups stay the same."""

    def __init__(self) -> None:
        self._groups: bytes | None = None
        self._weights: NDArray[np.float64] = np.empty((0, 0))

    def of(self, groups: NDArray[np.int64]) -> NDArray[np.float64]:
        """Resamples of these groups.

        Parameters
        ----------
        groups : ndarray of int64, (n,)
            Number of each image's group, from 0.

        Returns
        -------
        ndarray of float64, (RESAMPLES, n)
        """
        if groups.tobytes() != self._groups:  # what is compared nearly always shares its test images
            self._groups, self._weights = groups.tobytes(), _resamples(groups)
        return self._weights


def paired(
    ours: Mapping[int, NDArray[np.float64]], theirs: Mapping[int, NDArray[np.float64]], weights: NDArray[np.float64]
) -> dict[str, float] | None:
    """Compare two fits' answers on the same images over the seeds that both have, as `compare` says.

    Parameters
    ----------
    ours, theirs : Mapping[int, ndarray of float64, (n,)]
        By seed, 1 for each image that was answered right and 0 for the others.
    weights : ndarray of float64, (RESAMPLES, n)
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
    low, high = np.quantile(_weighted(weights, mine - other), (LEVEL / 2, 1 - LEVEL / 2))
    numbers = (len(mine), len(seeds), np.mean(mine - other), low, high, _mcnemar(mine > 0.5, other > 0.5))
    kinds = (int, int, float, float, float, float)
    return {name: kind(number) for name, kind, number in zip(PAIRED, kinds, numbers, strict=True)}


def with_holm(compared: pd.DataFrame) -> pd.DataFrame:
    """Add `p_holm`: the `p` of all rows together, corrected by Holm's method."""
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests(compared["p"].astype("float64"), method="holm")[1] if len(compared) else []
    return compared.assign(p_holm=corrected)


def near_best(answers: pd.DataFrame, summary: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Which results are the best at their amount of training data, and which are not significantly worse.

    Each method is compared with the best by McNemar's exact test on the same test images, as in `compare`, corrected by
    Holm's method within the amount.

    Returns
    -------
    dict[tuple[str, str, str], str]
        `best` or `near` by mask, method and training; what is worse is left out.
    """
    from statsmodels.stats.multitest import multipletests

    marks: dict[tuple[str, str, str], str] = {}
    for training, cells in _numbered(answers).groupby("training"):
        rows = summary[summary["training"] == training]
        means = dict(zip(zip(rows["mask"], rows["method"], strict=True), rows["accuracy_mean"], strict=True))
        best = max(means, key=lambda pair: (means[pair], pair))
        marks[(*best, str(training))] = "best"
        pairs = list(means)
        right = {(m, n): _majority(cells[(cells["mask"] == m) & (cells["method"] == n)]) for m, n in pairs}
        others = [pair for pair in pairs if pair != best and right[pair].index.equals(right[best].index)]
        if not others:
            continue
        p_values = [_mcnemar(right[pair].to_numpy(), right[best].to_numpy()) for pair in others]
        corrected = multipletests(p_values, method="holm")[1]
        marks |= {(*pair, str(training)): "near" for pair, p in zip(others, corrected, strict=True) if p >= LEVEL}
    return marks


def _majority(cells: pd.DataFrame) -> pd.Series:
    """Whether each image is right in more than half of the seeds, by image."""
    share = cells.groupby("image")["correct"].mean()
    return share > 0.5


def _mcnemar(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    only, others = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return float(mcnemar([[0, only], [others, 0]], exact=True).pvalue) if only + others else 1.0


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


def _by_image(cells: pd.DataFrame, images: pd.Index) -> dict[int, NDArray[np.float64]]:
    """Whether each image was right, 0 or 1, by seed; seeds whose test images are others are left out."""
    found = {}
    for seed in cells["seed"].unique().tolist():
        right = cells[cells["seed"] == seed].set_index("image")["correct"]
        if len(right) == len(images) and images.isin(right.index).all():
            found[seed] = right.loc[images].to_numpy(np.float64)
    return found


def _numbered(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers with numbers for the names of images, which are looked up many times."""
    return answers.assign(image=pd.factorize(answers["image"])[0])


def _drawn_from(baseline: pd.DataFrame) -> tuple[pd.Index, NDArray[np.int64]]:
    """The images, and the number of each one's group, from 0."""
    first = baseline[baseline["seed"] == baseline["seed"].min()]
    return pd.Index(first["image"]), pd.factorize(first["group"])[0].astype(np.int64)


def _resamples(groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each image is drawn in each resample of groups, (RESAMPLES, n)."""
    n_groups = int(groups.max()) + 1
    random = np.random.default_rng(0)
    drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=RESAMPLES)
    return drawn[:, groups].astype(np.float64)


def _weighted(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values in each resample, (RESAMPLES,)."""
    means: NDArray[np.float64] = weights @ values / weights.sum(axis=1)
    return means
