"""Scores of one cell on the test rows, with intervals, and defined where a class is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array

CALIBRATION_BINS = 15
"""Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 3."""
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Scores:
    """What is reported of one cell; shares are in [0, 1], and None means undefined."""

    n_train: int
    n_test: int
    correct: int
    accuracy: float
    balanced_accuracy: float
    """Mean recall over the classes that occur in test."""
    macro_f1: float
    """Mean F1 over the classes that occur in test or among the predictions."""
    auroc: float | None
    """One class against the rest, mean over the classes that occur in test; None if test has one class only."""
    ece: float
    """Expected calibration error of the top class, in 15 bins of equal width."""
    brier: float
    """Brier score over all classes (Monthly Weather Review 78, 1950): mean squared distance of the probabilities from
    the truth, in [0, 2]."""
    interval_low: float
    """Lower end of the 95 % Wilson interval of the accuracy."""
    interval_high: float
    n_test_unflagged: int
    """Test rows whose image and group occur in neither train nor val."""
    correct_unflagged: int

    def to_json(self) -> dict[str, Any]:
        """Fields as JSON values; what is undefined is null."""
        return json_numbers(asdict(self))

    def numbers(self) -> dict[str, float]:
        """Fields that are defined, for a commit record."""
        return {name: float(value) for name, value in self.to_json().items() if value is not None}


def json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace floats that JSON does not know (NaN, infinity) by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def score(
    probabilities: NDArray[np.float64], truth: NDArray[np.int64], flagged: NDArray[np.bool_], n_train: int
) -> Scores:
    """Score predicted probabilities; of equal ones the class with the smaller index is predicted.

    Parameters
    ----------
    probabilities : ndarray of float64, (n, K)
        A column for every class of the data set, zeros for classes that training never saw; rows sum to 1.
    truth : ndarray of int64, (n,)
        Class index, in [0, K).
    flagged : ndarray of bool, (n,)
        True for test rows whose image or group also occurs in train or val.
    n_train : int
        Rows of the training subset.

    Returns
    -------
    Scores
        Every field finite or None.

    Raises
    ------
    ValueError
        If there is no row, shapes or types do not fit, a row is no distribution, or a class index is out of range.
    """
    from sklearn.metrics import brier_score_loss, f1_score, recall_score

    _check(probabilities, truth, flagged)
    n, classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    right = predicted == truth
    recall = recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    low, high = wilson(int(right.sum()), n)
    return Scores(
        n_train=n_train,
        n_test=n,
        correct=int(right.sum()),
        accuracy=float(right.mean()),
        balanced_accuracy=float(recall),
        macro_f1=float(f1_score(truth, predicted, average="macro", zero_division=0)),
        auroc=_auroc(probabilities, truth),
        ece=_calibration_error(probabilities.max(axis=1), right),
        brier=float(brier_score_loss(truth, probabilities, labels=np.arange(classes), scale_by_half=False)),
        interval_low=low,
        interval_high=high,
        n_test_unflagged=int((~flagged).sum()),
        correct_unflagged=int((right & ~flagged).sum()),
    )


def wilson(correct: float, n: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score method (Journal of the American Statistical Association, 1927).

    Parameters
    ----------
    correct : float
        Successes, in [0, n]; a mean of several trials' successes is no whole number.
    n : int
        Trials, at least 1.

    Returns
    -------
    tuple[float, float]
        Lower and upper end, in [0, 1].

    Raises
    ------
    ValueError
        If n is below 1 or `correct` lies outside.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"wilson: expected 0 <= correct <= n and n >= 1, got {correct} of {n}")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, n, method="wilson")
    return 0.0 if correct == 0 else float(low), 1.0 if correct == n else float(high)


def _check(probabilities: NDArray[np.float64], truth: NDArray[np.int64], flagged: NDArray[np.bool_]) -> None:
    expect_array("probabilities", probabilities, (None, None), "float64")
    expect_array("truth", truth, (len(probabilities),), "int64")
    expect_array("flagged", flagged, (len(probabilities),), "bool")
    if not len(truth):
        raise ValueError("truth: expected at least one test row, got none")
    if truth.min() < 0 or truth.max() >= probabilities.shape[1]:
        raise ValueError(f"truth: expected class indices below {probabilities.shape[1]}, got up to {truth.max()}")
    if not (probabilities >= 0).all() or not (np.abs(probabilities.sum(axis=1) - 1) < SUM_TOLERANCE).all():
        raise ValueError("probabilities: expected rows of values in [0, 1] that sum to 1")


def _auroc(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> float | None:
    """Area under the curve of each class against the rest, averaged over the classes that occur."""
    from sklearn.metrics import roc_auc_score

    occurring = np.unique(truth)
    if len(occurring) == 1:
        return None
    return float(np.mean([roc_auc_score(truth == label, probabilities[:, label]) for label in occurring]))


def _calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(right))
