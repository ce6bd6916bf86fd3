"""What the answers of the largest training subset say beside their number: confusions, calibration, ROC, and controls.

A class is named by its column here (`p_0`, `p_1`, ...), because class names may be anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.report.tables import amount, place
from stages.scores import CALIBRATION_BINS

FALSE_RATES: Final = np.linspace(0, 1, 101)
"""False positive rates at which the curves of all seeds are averaged."""
CONTROLS: Final = ("inverted", "random-box", "shuffled", "roi-random-box", "roi-shuffled", "shape", "binary")
"""Methods that show whether a mask's place, or its outline alone, does the work."""
ALWAYS: Final = ("medfocus", "original")
"""Methods that are looked at closely wherever there are answers of them, each under its best mask."""
MOST_METHODS: Final = 4
"""Methods whose confusions and calibration are drawn."""


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns with the probabilities of the classes, in order."""
    return [f"p_{index}" for index in range(len(classes))]


def chosen(probabilities: pd.DataFrame, summary: pd.DataFrame) -> list[tuple[str, str]]:
    """Mask and method of those that are looked at closely: the best medfocus, original, and the best of the others.

    Parameters
    ----------
    probabilities : DataFrame
        Rows of `ReportData.probabilities`.
    summary : DataFrame
        What `tables.summarise` returns.
    """
    columns = probabilities[["mask", "method"]].drop_duplicates()
    pairs = [(str(mask), str(method)) for mask, method in columns.itertuples(index=False)]
    best = summary.groupby(["mask", "method"])["accuracy_mean"].max()
    rank = sorted(pairs, key=lambda pair: (-float(best.get(pair, 0.0)), place(pair[1]), pair[0]))
    first = [pair for method in ALWAYS for pair in [p for p in rank if p[1] == method][:1]]
    kept = [*first, *(pair for pair in rank if pair not in first and pair[1] != "constant")][:MOST_METHODS]
    return sorted(kept, key=lambda pair: (place(pair[1]), pair[0]))


def confusion(rows: pd.DataFrame, n_classes: int) -> NDArray[np.int64]:
    """How often each class, by row, was taken for each, by column, over all seeds.

    Parameters
    ----------
    rows : DataFrame
        `truth` and `predicted`, class indices.
    n_classes : int
        K.

    Returns
    -------
    ndarray of int64, (K, K)
    """
    from sklearn.metrics import confusion_matrix

    matrix: NDArray[np.int64] = confusion_matrix(rows["truth"], rows["predicted"], labels=range(n_classes))
    return matrix


def reliability(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Confidence and accuracy of the predicted class, by bin of confidence, over all seeds.

    Returns
    -------
    DataFrame
        A row for each of the 15 bins of the calibration error that is not empty: `low`, `high`, `n`, `confidence`,
        `accuracy`; a confidence on a border lies in the lower bin.
    """
    confidence = rows[probability_columns(classes)].to_numpy(np.float64).max(axis=1)
    right = (rows["truth"] == rows["predicted"]).to_numpy(np.float64)
    bins = CALIBRATION_BINS
    position = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    found = []
    for index in np.unique(position).tolist():
        inside = position == index
        means = float(confidence[inside].mean()), float(right[inside].mean())
        found.append((index / bins, (index + 1) / bins, int(inside.sum()), *means))
    return pd.DataFrame(found, columns=["low", "high", "n", "confidence", "accuracy"])


def roc_curves(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One-vs-rest ROC curve of each class, the mean over seeds of the true positive rates at each false positive rate.

    Returns
    -------
    DataFrame
        A row for each class that has positives and negatives, and rate: `class_index`, `false_positive_rate`,
        `true_positive_rate`, and `auroc`, the mean over seeds.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    frames = []
    for index, column in enumerate(probability_columns(classes)):
        curves, areas = [], []
        for _, of_seed in rows.groupby("seed"):
            positive = (of_seed["truth"] == index).to_numpy()
            if positive.all() or not positive.any():
                continue
            false, true, _ = roc_curve(positive, of_seed[column])
            curves.append(np.interp(FALSE_RATES, false, true))
            curves[-1][0] = 0.0
            areas.append(roc_auc_score(positive, of_seed[column]))
        if curves:
            mean = {"false_positive_rate": FALSE_RATES, "true_positive_rate": np.mean(curves, axis=0)}
            frames.append(pd.DataFrame({"class_index": index, **mean, "auroc": float(np.mean(areas))}))
    columns = ["class_index", "false_positive_rate", "true_positive_rate", "auroc"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def control_rows(compared: pd.DataFrame) -> pd.DataFrame:
    """Differences from `original` of what sees masks and of what controls it, from the fewest labels to the most.

    Parameters
    ----------
    compared : DataFrame
        What `comparison.compare` returns.

    Returns
    -------
    DataFrame
        The same rows without methods that are neither a view of the image nor a control of one, with `control`.
    """
    of_views = compared["method"].map(lambda method: " " not in method and "medfocus-" not in method).astype(bool)
    simple = compared[of_views]
    kept = simple[simple["mask"] != ""].assign(control=lambda frame: frame["method"].isin(CONTROLS))
    keys = kept.assign(rank=kept["method"].map(place), amount=kept["training"].map(amount))
    return kept.loc[keys.sort_values(["control", "rank", "mask", "amount"]).index].reset_index(drop=True)
