"""Paired comparison of every method with one other on the same test images: bootstrap interval and permutation test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.report.tables import UNDEFINED, Entry, Table, amounts, place

REFERENCE: Final = "original"
"""The method that every other is compared with: the same features without any mask."""
RESAMPLES: Final = 10_000
LEVEL: Final = 0.05
PAIRED: Final = ("n", "seeds", "accuracy", "reference", "difference", "low", "high", "p")
"""What a paired comparison tells, see `compare`."""
NOTHING: Final = 1e-9
"""What float arithmetic leaves of a difference that is none."""


def compare(answers: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """Compare every method with a reference at every amount of training data, on the test images that both answered.

    The difference is that of the accuracies, each the mean over the seeds that both have. Its interval is a percentile
    bootstrap (Efron, Annals of Statistics 7, 1979) over groups of test images, 10,000 times. The p value is that of a
    permutation test of the same difference: which of the two methods is which is drawn anew for each group, 10,000
    times (Fisher's sign-flip test; Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005). Where each
    group has one image and there is one seed, this is McNemar's exact test (Psychometrika 12, 1947), and computed as
    that. All p values together are corrected by Holm's method (Scandinavian Journal of Statistics 6, 1979).

    Parameters
    ----------
    answers : DataFrame
        A row for each test image of each cell with `ANSWER_COLUMNS`; `correct` is bool.
    reference : str
        Method that needs no mask; where it is missing, nothing is compared.

    Returns
    -------
    DataFrame
        A row for each (mask, method, training) but the reference's: `n` images, `seeds`, `accuracy`, that of the
        `reference`, their `difference`, `low`, `high` (95 %), `p` and `p_holm`; shares, not percent.
    """
    rows = []
    numbered, draws = _numbered(answers), Draws()
    for training, cells in numbered.groupby("training"):
        baseline = cells[cells["method"] == reference]
        for (mask, method), own in cells[cells["method"] != reference].groupby(["mask", "method"]):
            found = _compared(own, baseline, draws)
            if found is not None:
                rows.append({"mask": mask, "method": method, "training": training, **found})
    return with_holm(pd.DataFrame(rows, columns=["mask", "method", "training", *PAIRED]))


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random draws for images of given groups."""

    groups: NDArray[np.int64]
    """Number of each image's group, from 0, (n,)."""
    weights: NDArray[np.float64]
    """How often each image is drawn in each bootstrap resample of groups, (RESAMPLES, n)."""
    signs: NDArray[np.float32]
    """1 or -1 for each group in each permutation, (RESAMPLES, groups)."""


class Draws:
    """Draws for images of given groups; kept for as long as the groups stay the same."""

    def __init__(self) -> None:
        self._groups: bytes | None = None
        self._drawn = Drawn(np.empty(0, np.int64), np.empty((0, 0)), np.empty((0, 0), np.float32))

    def of(self, groups: NDArray[np.int64]) -> Drawn:
        """Draws for these groups, the same for the same groups.

        Parameters
        ----------
        groups : ndarray of int64, (n,)
            Number of each image's group, from 0.
        """
        if groups.tobytes() != self._groups:  # what is compared nearly always shares its test images
            self._groups, self._drawn = groups.tobytes(), _draw(groups)
        return self._drawn


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
    low, high = np.quantile(_weighted(drawn.weights, mine - other), (LEVEL / 2, 1 - LEVEL / 2))
    means = np.mean(mine), np.mean(other), np.mean(mine - other)
    numbers = (len(mine), len(seeds), *means, low, high, _p_value(mine - other, drawn))
    kinds = (int, int, *[float] * 6)
    return {name: kind(number) for name, kind, number in zip(PAIRED, kinds, numbers, strict=True)}


def _p_value(differences: NDArray[np.float64], drawn: Drawn) -> float:
    """Two-sided p of the sum of the images' differences when each group's sum might as well have the other sign."""
    sums = np.bincount(drawn.groups, differences)
    sizes = np.abs(sums[np.abs(sums) > NOTHING])
    if not len(sizes):
        return 1.0
    if np.ptp(sizes) < NOTHING:  # every group that differs counts alike: the binomial of McNemar's exact test
        return _mcnemar(int((sums > NOTHING).sum()), int((sums < -NOTHING).sum()))
    extreme = np.abs(drawn.signs @ sums.astype(np.float32)) >= abs(sums.sum()) * (1 - 1e-5)
    return float((1 + extreme.sum()) / (1 + RESAMPLES))


def _mcnemar(ours: int, theirs: int) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, ours], [theirs, 0]], exact=True).pvalue)


def with_holm(compared: pd.DataFrame) -> pd.DataFrame:
    """Add `p_holm`: the `p` of all rows together, corrected by Holm's method."""
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests(compared["p"].astype("float64"), method="holm")[1] if len(compared) else []
    return compared.assign(p_holm=corrected)


def near_best(answers: pd.DataFrame, summary: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Which results are the best at their amount of training data, and which are not significantly worse.

    Each method is compared with the best as `compare` does, corrected by Holm's method within the amount.

    Returns
    -------
    dict[tuple[str, str, str], str]
        `best` or `near` by mask, method and training; what is worse, or shares no test image or seed, is left out.
    """
    marks: dict[tuple[str, str, str], str] = {}
    draws = Draws()
    for training, cells in _numbered(answers).groupby("training"):
        rows = summary[summary["training"] == training]
        means = dict(zip(zip(rows["mask"], rows["method"], strict=True), rows["accuracy_mean"], strict=True))
        best = max(means, key=lambda pair: (means[pair], pair))
        marks[(*best, str(training))] = "best"
        own = {pair: cells[(cells["mask"] == pair[0]) & (cells["method"] == pair[1])] for pair in means}
        found = {pair: _compared(own[pair], own[best], draws) for pair in means if pair != best}
        told = pd.DataFrame([{"pair": pair, **row} for pair, row in found.items() if row], columns=["pair", *PAIRED])
        corrected = with_holm(told)
        near = corrected[corrected["p_holm"] >= LEVEL]["pair"]
        marks |= {(*pair, str(training)): "near" for pair in near}
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


def _compared(own: pd.DataFrame, other: pd.DataFrame, draws: Draws) -> dict[str, float] | None:
    """Compare the cells of two methods on the images and seeds that both have; None if there is none of either."""
    if own.empty or other.empty:
        return None
    first = other[other["seed"] == other["seed"].min()]
    common = first[first["image"].isin(own.loc[own["seed"] == own["seed"].min(), "image"])]
    if common.empty:
        return None
    images, groups = pd.Index(common["image"]), pd.factorize(common["group"])[0].astype(np.int64)
    return paired(_by_image(own, images), _by_image(other, images), draws.of(groups))


def _by_image(cells: pd.DataFrame, images: pd.Index) -> dict[int, NDArray[np.float64]]:
    """Whether each image was right, 0 or 1, by seed; seeds that lack one of the images are left out."""
    found = {}
    for seed in cells["seed"].unique().tolist():
        right = cells[cells["seed"] == seed].set_index("image")["correct"]
        if images.isin(right.index).all():
            found[seed] = right.loc[images].to_numpy(np.float64)
    return found


def _numbered(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers with numbers for the names of images, which are looked up many times."""
    return answers.assign(image=pd.factorize(answers["image"])[0])


def _draw(groups: NDArray[np.int64]) -> Drawn:
    n_groups = int(groups.max()) + 1
    random = np.random.default_rng(0)
    drawn = random.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=RESAMPLES)
    signs = random.integers(2, size=(RESAMPLES, n_groups), dtype=np.int8).astype(np.float32) * 2 - 1
    return Drawn(groups, drawn[:, groups].astype(np.float64), signs)


def _weighted(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the values in each resample, (RESAMPLES,)."""
    means: NDArray[np.float64] = weights @ values / weights.sum(axis=1)
    return means
