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
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    rows = []
    numbered = _numbered(answers)
    resampled: dict[bytes, NDArray[np.float64]] = {}
    for training, cells in numbered.groupby("training"):
        baseline = cells[cells["method"] == reference]
        if baseline.empty:
            continue
        images, groups = _drawn_from(baseline)
        if groups.tobytes() not in resampled:  # amounts nearly always share their test images
            resampled = {groups.tobytes(): _resamples(groups)}
        weights = resampled[groups.tobytes()]
        theirs = _by_image(baseline, images)
        for (mask, method), own in cells[cells["method"] != reference].groupby(["mask", "method"]):
            ours = _by_image(own, images)
            seeds = [seed for seed in ours if seed in theirs]
            if not seeds:
                continue
            mine, other = (np.mean([found[s] for s in seeds], axis=0) for found in (ours, theirs))
            low, high = np.quantile(_weighted(weights, mine - other), (LEVEL / 2, 1 - LEVEL / 2))
            only, others = int(((mine > 0.5) & (other <= 0.5)).sum()), int(((mine <= 0.5) & (other > 0.5)).sum())
            p = float(mcnemar([[0, only], [others, 0]], exact=True).pvalue) if only + others else 1.0
            numbers = (len(images), len(seeds), float(np.mean(mine - other)), float(low), float(high), p)
            rows.append((mask, method, training, *numbers))
    columns = ["mask", "method", "training", "n", "seeds", "difference", "low", "high", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    corrected = multipletests(frame["p"], method="holm")[1] if len(frame) else []
    return frame.assign(p_holm=corrected)


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
        others = [pair for pair in pairs if pair != best and len(right[pair]) == len(right[best])]
        if not others:
            continue
        p_values = [_mcnemar(right[pair], right[best]) for pair in others]
        corrected = multipletests(p_values, method="holm")[1]
        marks |= {(*pair, str(training)): "near" for pair, p in zip(others, corrected, strict=True) if p >= LEVEL}
    return marks


def _majority(cells: pd.DataFrame) -> pd.Series:
    """Whether each image is right in more than half of the seeds, by image."""
    share = cells.groupby("image")["correct"].mean()
    return share > 0.5


def _mcnemar(ours: pd.Series, theirs: pd.Series) -> float:
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
